"""Tokens sampled from logits on a CUDA device are those that the host samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from server.engine.interface import SamplingParams
from server.engine.sampling.logprobs import token_logprobs
from server.engine.sampling.sampler import sample
from server.engine.sampling.sampling_state import SamplingState

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

VOCABULARY = 300
PROMPT, GENERATED = (3, 7, 7, 11), (7, 20)
EOS = frozenset({0, 2})
PARAMS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "temperature": {"temperature": 0.8},
    "top-k": {"temperature": 1.5, "top_k": 7},
    "top-p": {"temperature": 1.0, "top_p": 0.6},
    "both and min-p": {"temperature": 2.0, "top_k": 40, "top_p": 0.9, "min_p": 0.05},
    "penalties": {"temperature": 1.0, "repetition_penalty": 1.4, "frequency_penalty": 0.5, "presence_penalty": 0.3},
    "min tokens": {"temperature": 0, "min_tokens": 9},
    "a bias": {"temperature": 1.0, "logit_bias": ((5, 9.0),)},
    "allowed tokens": {"temperature": 1.0, "allowed_token_ids": frozenset({4, 9, 200})},
}


def states(params: list[dict[str, Any]], seed: int) -> list[SamplingState]:
    return [
        SamplingState(SamplingParams(max_tokens=99, **each), seed + row, [*PROMPT, *GENERATED], len(PROMPT))
        for row, each in enumerate(params)
    ]


def draw(rows: int, seed: int) -> torch.Tensor:
    return torch.randn((rows, VOCABULARY), generator=torch.Generator().manual_seed(seed)) * 3


def sample_both(logits: torch.Tensor, params: list[dict[str, Any]], seed: int = 0) -> tuple[list[Any], list[Any]]:
    there = logits.cuda()
    return sample(there, states(params, seed), EOS), sample(logits.clone(), states(params, seed), EOS)


@pytest.mark.parametrize("name", PARAMS)
def test_a_device_samples_the_tokens_of_the_host(name: str) -> None:
    for seed in range(5):
        found, expected = sample_both(draw(4, seed), [PARAMS[name]] * 4, seed)
        assert found == expected


def test_each_row_is_sampled_as_if_it_were_alone() -> None:
    params = list(PARAMS.values())
    logits = draw(len(params), 1)
    together, expected = sample_both(logits, params)
    assert together == expected
    last = len(params) - 1
    assert sample(logits[last:].cuda(), states(params, 0)[last:], EOS) == expected[last:]


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_rows_that_are_not_finite_have_no_token(value: float, temperature: float) -> None:
    logits = draw(3, 2)
    logits[1, 5] = value
    found, expected = sample_both(logits, [{"temperature": temperature}] * 3)
    assert found == expected
    assert found[1] is None


def test_logprobs_of_a_device_are_those_of_the_host() -> None:
    logits = draw(3, 4)
    found, expected = (token_logprobs(each, [5, 6, 7], [3, 0, 5]) for each in (logits.cuda(), logits))
    for one, other in zip(found, expected, strict=True):
        assert one.token_id == other.token_id
        assert abs(one.logprob - other.logprob) < 1e-5
        assert [token for token, _ in one.top] == [token for token, _ in other.top]
