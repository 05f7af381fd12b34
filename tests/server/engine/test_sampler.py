"""The sampler against transformers' logits warpers."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from server.engine.request import SamplingParams
from server.engine.sampler import sample

ROWS, VOCABULARY = 3, 50


def params(**values: float) -> SamplingParams:
    return SamplingParams(max_tokens=1, **values)  # type: ignore[arg-type]


def stock_probabilities(logits: torch.Tensor, param: SamplingParams) -> torch.Tensor:
    warpers = LogitsProcessorList([TemperatureLogitsWarper(param.temperature)])
    if param.top_k:
        warpers.append(TopKLogitsWarper(param.top_k))
    if param.top_p < 1:
        warpers.append(TopPLogitsWarper(param.top_p))
    if param.min_p > 0:
        warpers.append(MinPLogitsWarper(param.min_p))
    return warpers(torch.zeros((1, 1), dtype=torch.long), logits[None])[0].softmax(-1)


@pytest.mark.parametrize(
    "param",
    [
        params(temperature=0.7),
        params(temperature=1.3, top_k=5),
        params(temperature=1.0, top_p=0.8),
        params(temperature=1.0, min_p=0.2),
        params(temperature=0.9, top_k=20, top_p=0.9, min_p=0.05),
        params(temperature=1.0, top_p=1e-6),
    ],
)
def test_draws_follow_the_probabilities_of_transformers(param: SamplingParams) -> None:
    """Evenly spaced draws give each token its share, within one draw."""
    logits = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(1)) * 2
    expected = stock_probabilities(logits, param)
    count = 2000
    draws = [(i + 0.5) / count for i in range(count)]
    tokens = sample(logits.expand(count, -1), [param] * count, draws)
    shares = torch.bincount(torch.tensor(tokens), minlength=VOCABULARY) / count
    assert float((shares - expected).abs().max()) <= 1.5 / count


def test_the_ends_of_the_draw_stay_among_possible_tokens() -> None:
    logits = torch.randn((2, VOCABULARY), generator=torch.Generator().manual_seed(2))
    best = logits.topk(3, dim=-1).indices.tolist()
    tokens = sample(logits, [params(top_k=3)] * 2, [0.0, 1 - 1e-16])
    assert tokens[0] == best[0][0]
    assert tokens[1] == best[1][2]


def test_temperature_zero_is_greedy_beside_others() -> None:
    logits = torch.randn((ROWS, VOCABULARY), generator=torch.Generator().manual_seed(3))
    tokens = sample(logits, [params(temperature=0.0), params(), params(temperature=0.0)], [0.9, 0.9, 0.9])
    assert tokens[0] == int(logits[0].argmax())
    assert tokens[2] == int(logits[2].argmax())


def test_a_row_does_not_depend_on_its_company() -> None:
    logits = torch.randn((ROWS, VOCABULARY), generator=torch.Generator().manual_seed(4))
    mixed = [params(), params(top_k=2, temperature=0.5), params(top_p=0.5)]
    draws = [0.1, 0.6, 0.95]
    together = sample(logits, mixed, draws)
    assert together == [sample(logits[i : i + 1], [mixed[i]], [draws[i]])[0] for i in range(ROWS)]
