"""The sampler against transformers' logits processors."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from server.engine.interface import SamplingParams
from server.engine.sampling import grouped_logits, sampler, top_p
from server.engine.sampling.grouped_logits import GroupedLogits
from server.engine.sampling.random_numbers import uniforms
from server.engine.sampling.sampler import sample
from server.engine.sampling.sampling_state import SamplingState
from server.kernels.native.available import availability
from server.kernels.native.library import Kernels
from server.model.step import HostLogits

VOCABULARY = 50
PROMPT = (3, 7, 7, 11)
EOS = frozenset({0, 2})
LEVELS = (None, *availability().runnable)  # None: torch


def state(prompt: tuple[int, ...] = PROMPT, generated: tuple[int, ...] = (), seed: int = 0, **params: Any) -> Any:
    return SamplingState(SamplingParams(max_tokens=99, **params), seed, [*prompt, *generated], len(prompt))


def normal(rows: int, size: int = VOCABULARY, seed: int = 1) -> torch.Tensor:
    return torch.randn((rows, size), generator=torch.Generator().manual_seed(seed)) * 3


def stock_scores(logits: torch.Tensor, state: SamplingState) -> torch.Tensor:
    """Return logits ``(vocabulary,)`` after transformers' processors; OpenAI's two penalties are computed here."""
    param, token_ids = state.params, torch.tensor([state.token_ids])
    if param.repetition_penalty != 1:
        logits = RepetitionPenaltyLogitsProcessor(param.repetition_penalty)(token_ids, logits[None])[0]
    generated = torch.tensor(state.token_ids[state.num_prompt_tokens :], dtype=torch.long)
    counts = torch.bincount(generated, minlength=len(logits))
    logits = logits - counts * param.frequency_penalty - (counts > 0) * param.presence_penalty
    processors = LogitsProcessorList()
    if param.logit_bias:
        processors.append(SequenceBiasLogitsProcessor([[[token], value] for token, value in param.logit_bias]))
    ends = sorted(EOS | param.stop_token_ids)
    processors.append(
        MinNewTokensLengthLogitsProcessor(state.num_prompt_tokens, param.min_tokens, torch.tensor(ends), device="cpu")
    )
    if param.temperature > 0:
        processors.append(TemperatureLogitsWarper(param.temperature))
    if param.top_k:
        processors.append(TopKLogitsWarper(param.top_k))
    if param.top_p < 1:
        processors.append(TopPLogitsWarper(param.top_p))
    if param.min_p > 0:
        processors.append(MinPLogitsWarper(param.min_p))
    result: torch.Tensor = processors(token_ids, logits[None])[0]
    return result


@cache
def kernels_of(level: str | None) -> Kernels | None:
    return None if level is None else Kernels(2, level)


@pytest.fixture(params=LEVELS, ids=["torch", *LEVELS[1:]])
def kernels(request: pytest.FixtureRequest) -> Kernels | None:
    return kernels_of(request.param)


def shares(
    logits: torch.Tensor,
    state: SamplingState,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    kernels: Kernels | None = None,
) -> torch.Tensor:
    """Count how often evenly spaced numbers select each token."""
    draws = (torch.arange(count) + 0.5).double() / count
    with monkeypatch.context() as patch:
        patch.setattr(sampler, "uniforms", lambda *_: draws.numpy())
        tokens = sample(logits.expand(count, -1).contiguous(), [state] * count, EOS, kernels)
    return torch.bincount(torch.tensor(tokens), minlength=len(logits)) / count


@pytest.fixture(params=[False, True], ids=["whole", "in parts"])
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        cut_in_parts(monkeypatch)


def cut_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use small groups, tiles and heads, so that a small vocabulary takes the paths of a large one."""
    monkeypatch.setattr(top_p, "HEAD", 6)
    for module in (grouped_logits, sampler):
        monkeypatch.setattr(module, "GROUP", 4)
    monkeypatch.setattr(grouped_logits, "TILE", 2 * VOCABULARY)


PARAMETERS: list[dict[str, Any]] = [
    {"temperature": 0.7},
    {"temperature": 1.3, "top_k": 5},
    {"temperature": 1.3, "top_k": 30},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 2.0, "top_p": 0.97},
    {"temperature": 1.0, "min_p": 0.2},
    {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 1.0, "top_p": 1e-6},
    {"temperature": 1.0, "top_k": 200},
    {"temperature": 1.0, "repetition_penalty": 1.5},
    {"temperature": 1.0, "presence_penalty": 1.5, "frequency_penalty": -0.5, "repetition_penalty": 0.7, "top_k": 6},
    {"temperature": 1.0, "logit_bias": ((4, -100.0), (5, 3.5), (49, 100.0))},
    {"temperature": 1.0, "min_tokens": 7, "stop_token_ids": frozenset({5, 6}), "top_p": 0.9},
    {"temperature": 1.0, "min_tokens": 6, "stop_token_ids": frozenset({5, 6})},
]


@pytest.mark.slow
@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("params", PARAMETERS, ids=str)
def test_samples_follow_the_probabilities_of_transformers(
    params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evenly spaced numbers select each token in proportion to its probability, within one."""
    logits = normal(1)[0]
    row = state(generated=(5, 5, 9, 5, 9, 1), **params)
    count = 2000
    expected = stock_scores(logits, row).softmax(-1)
    assert float((shares(logits, row, monkeypatch, count) - expected).abs().max()) <= 1.5 / count


@st.composite
def sampling(draw: st.DrawFn) -> dict[str, Any]:
    """Return a strategy of sampling parameters, each left out half the time."""
    optional = {
        "top_k": st.integers(1, 60),
        "top_p": st.floats(0.01, 0.999),
        "min_p": st.floats(0.0, 1.0),
        "presence_penalty": st.floats(-2, 2),
        "frequency_penalty": st.floats(-2, 2),
        "repetition_penalty": st.floats(0.1, 2),
        "logit_bias": st.dictionaries(st.integers(0, VOCABULARY - 1), st.floats(-100, 100), max_size=6).map(
            lambda bias: tuple(bias.items())
        ),
        "min_tokens": st.integers(0, 6),
        "stop_token_ids": st.frozensets(st.integers(0, VOCABULARY - 1), max_size=3),
    }
    chosen: dict[str, Any] = draw(st.fixed_dictionaries({}, optional=optional))
    return {"temperature": draw(st.floats(0.1, 2)), **chosen}


NO_FILTERS = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


@pytest.mark.slow
@settings(max_examples=150)
@given(
    params=sampling(),
    generated=st.lists(st.integers(0, VOCABULARY - 1), max_size=6),
    seed=st.integers(0, 2**32),
    are_ties=st.booleans(),
    is_in_parts=st.booleans(),
    level=st.sampled_from(LEVELS),
)
def test_filters_keep_the_tokens_that_transformers_keeps(
    params: dict[str, Any], generated: list[int], seed: int, are_ties: bool, is_in_parts: bool, level: str | None
) -> None:
    """Equal tokens are compared together, since transformers breaks ties of top-p arbitrarily.

    Tokens on the very edge of top-p or min-p may fall on either side by rounding.
    """
    with pytest.MonkeyPatch.context() as monkeypatch:
        if is_in_parts:
            cut_in_parts(monkeypatch)
        logits = normal(1, seed=seed)[0]
        if are_ties:
            logits = logits.round()
        row = state(generated=tuple(generated), **params)
        count = 400
        got = shares(logits, row, monkeypatch, count, kernels_of(level))
    # Either of two neighbouring parameters is right where the token at the edge is lost to rounding.
    _, equals = stock_scores(logits, state(generated=tuple(generated), **params | NO_FILTERS)).unique(
        return_inverse=True
    )
    near = []
    for shift in (0.0, 1e-6, -1e-6):
        edge = {name: min(max(params[name] + shift, 0.0), 1.0) for name in ("top_p", "min_p") if name in params}
        scores = stock_scores(logits, state(generated=tuple(generated), **params | edge))
        expected = scores.softmax(-1)
        for group in range(int(equals.max()) + 1):
            expected[equals == group] = expected[equals == group].sort(descending=True).values
        near.append(float((got - expected).abs().max()))
    assert min(near) <= 1.5 / count


def test_greedy_takes_the_first_of_the_most_likely_after_penalties(kernels: Kernels | None) -> None:
    logits = torch.zeros((2, VOCABULARY))
    logits[:, 20], logits[:, 9], logits[:, 30] = 5.0, 5.0, 4.5
    rows = [state(temperature=0.0), state(generated=(9, 20), temperature=0.0, presence_penalty=1.0)]
    assert sample(logits, rows, kernels=kernels) == [9, 30]


def test_extreme_random_numbers_select_possible_tokens(
    monkeypatch: pytest.MonkeyPatch, kernels: Kernels | None
) -> None:
    logits = normal(4)
    best = logits.topk(3, -1).indices.sort(-1).values.tolist()
    rows = [state(top_k=3), state(top_k=3), state(min_p=1.0), state(min_p=1.0)]
    draws = torch.tensor([0.0, 1 - 2**-53] * 2, dtype=torch.float64).numpy()
    monkeypatch.setattr(sampler, "uniforms", lambda *_: draws)
    greedy = logits.argmax(-1).tolist()
    assert sample(logits, rows, kernels=kernels) == [best[0][0], best[1][2], greedy[2], greedy[3]]


def test_a_row_that_is_not_finite_gives_no_token_and_changes_no_other_row(kernels: Kernels | None) -> None:
    logits = normal(5)
    expected = sample(logits[1:2].clone(), [state()], kernels=kernels)
    logits[0, 3], logits[2, 4], logits[3, 5] = torch.nan, torch.inf, -torch.inf
    rows = [state(), state(), state(temperature=0.0), state(top_k=3), state(top_p=0.5)]
    tokens = sample(logits, rows, kernels=kernels)
    assert [token is None for token in tokens] == [True, False, True, True, False]
    assert tokens[1:2] == expected


def test_logits_of_native_layers_give_the_first_of_the_most_likely_tokens(kernels: Kernels | None) -> None:
    logits = normal(3)
    logits[0, [9, 30]], logits[1, 4] = 50.0, torch.nan
    tokens = sample(HostLogits.of(logits), [state(temperature=0.0)] * 3, kernels=kernels)
    assert tokens == [9, None, int(logits[2].argmax())]


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-4])
@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 1e-300, "min_p": 1e-300}], ids=str)
def test_a_temperature_close_to_zero_is_greedy(
    temperature: float, filters: dict[str, Any], kernels: Kernels | None
) -> None:
    logits = normal(1) * 100
    rows = [state(temperature=temperature, **filters)]
    assert sample(logits.clone(), rows, kernels=kernels) == logits.argmax(-1).tolist()


def test_a_row_without_a_possible_token_gives_none(kernels: Kernels | None) -> None:
    logits = normal(2)
    rows = [state(min_tokens=1, stop_token_ids=frozenset(range(VOCABULARY))), state(temperature=0.0)]
    assert sample(logits, rows, kernels=kernels) == [None, int(logits[1].argmax())]


@pytest.mark.parametrize("size", [50, 4096, 50257])
def test_a_row_is_batch_invariant(size: int, kernels: Kernels | None) -> None:
    """Tokens of many samples are the same alone, in pairs and in a batch, in any order."""
    rng = random.Random(0)
    rows = [
        state(
            seed=rng.getrandbits(64), generated=tuple(rng.randrange(size) for _ in range(4)), **rng.choice(PARAMETERS)
        )
        for _ in range(24)
    ]
    logits = normal(len(rows), size, seed=5)
    together = sample(logits.clone(), rows, EOS, kernels)
    assert together == [sample(logits[i : i + 1].clone(), [rows[i]], EOS, kernels)[0] for i in range(len(rows))]
    order = list(range(len(rows)))
    rng.shuffle(order)
    half = order[: len(order) // 2]
    assert sample(logits[half].clone(), [rows[i] for i in half], EOS, kernels) == [together[i] for i in half]


@pytest.mark.parametrize("scale", [3.0, 0.01], ids=["peaked", "flat"])
@pytest.mark.parametrize("size", [129, 4096, 50257])
def test_every_level_chooses_the_tokens_of_torch(size: int, scale: float) -> None:
    """Equal logits too, of which the smallest ids are kept."""
    rng = random.Random(size)
    rows = [state(seed=rng.getrandbits(64), **rng.choice(PARAMETERS)) for _ in range(40)]
    logits = (normal(len(rows), size, seed=6) * 20).round() / 20 * scale
    expected = sample(logits.clone(), rows, EOS)
    for level in LEVELS[1:]:
        assert sample(logits.clone(), rows, EOS, kernels_of(level)) == expected, level


@pytest.fixture(params=[1, 7])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_exponentials_do_not_depend_on_the_position_in_a_tensor() -> None:
    """No thread computes a part of a vector."""
    values = torch.rand(64 * 5003, generator=torch.Generator().manual_seed(3)) * -60
    together = grouped_logits.exponentials(values.clone())
    alone = torch.cat([grouped_logits.exponentials(part.clone()) for part in values.split(64)])
    assert torch.equal(together, alone)
    assert torch.allclose(together, values.exp(), rtol=1e-5)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("size", [50, 32064, 50257])
def test_the_threshold_of_top_p_is_batch_invariant(size: int) -> None:
    """It is bitwise equal even where full vocabularies are sorted."""
    logits = normal(9, size, seed=8)
    filters = top_p.Filters(
        temperatures=torch.linspace(0.3, 2.0, 9),
        top_k=torch.tensor([0, 200, 3, 0, 0, 0, 500, 0, 0]),
        top_p=torch.linspace(0.5, 0.999, 9),
        log_min_p=torch.full((9,), -torch.inf),
    )
    together = top_p.lowest_scores(GroupedLogits(logits.clone()), torch.arange(9), filters)
    for row in range(9):
        alone = GroupedLogits(logits[row : row + 1].clone())
        assert together[row] == top_p.lowest_scores(alone, torch.tensor([0]), filters.of(torch.tensor([row])))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shape", [(1, 384), (1, 152064), (5, 4096), (2, 50257), (3, 100)])
def test_sums_of_weights_do_not_depend_on_the_number_of_rows(shape: tuple[int, int]) -> None:
    logits = normal(9, shape[1], seed=7)
    temperatures = torch.linspace(0.3, 2.0, 9)
    whole = GroupedLogits(logits).group_weights(torch.arange(9), temperatures)
    rows = torch.arange(shape[0])
    part = GroupedLogits(logits[: shape[0]].clone()).group_weights(rows, temperatures[: shape[0]])
    assert torch.equal(whole[: shape[0]], part)


def test_seed_and_position_determine_the_sample() -> None:
    seeds = [0, 1, -1, 2**64 - 1, 12345]
    numbers = uniforms(seeds, [0] * 5)
    assert numbers[2] == numbers[3]
    assert len(set(numbers)) == 4
    assert uniforms([12345], [0])[0] == numbers[4]
    assert uniforms([12345], [1])[0] != numbers[4]


def test_random_numbers_are_uniform_over_positions_and_over_seeds() -> None:
    """Sixteen equal parts of 16,000 numbers each: none is further from its thousand than chance takes it."""
    count = 16000
    for numbers in (uniforms([7] * count, list(range(count))), uniforms(list(range(count)), [3] * count)):
        drawn = torch.tensor(numbers, dtype=torch.float64)
        parts = torch.bincount((drawn * 16).long(), minlength=16)
        assert float((parts - 1000).abs().max()) < 150
        neighbours = torch.corrcoef(drawn.unfold(0, 2, 1).T)[0, 1]
        assert abs(float(neighbours)) < 0.03


def test_the_largest_are_found_in_groups() -> None:
    logits = normal(3, 5000, seed=9)
    values, tokens = GroupedLogits(logits).largest(torch.tensor([2, 0]), 20)
    expected = logits[[2, 0]].topk(20, -1)
    assert torch.equal(values, expected.values)
    assert torch.equal(tokens, expected.indices)


def test_only_allowed_tokens_are_chosen() -> None:
    states = [state(allowed_token_ids=frozenset({3, 9}), temperature=0), state(temperature=0)]
    logits = normal(2)
    best = logits.argmax(-1).tolist()
    chosen = sample(logits.clone(), states)
    assert chosen == [3 if logits[0, 3] > logits[0, 9] else 9, best[1]]


def test_a_bias_does_not_bring_a_masked_token_back() -> None:
    states = [state(allowed_token_ids=frozenset({3}), logit_bias=((5, 100.0),), temperature=1)]
    assert sample(normal(1), states) == [3]


def test_the_last_token_of_a_bad_word_is_masked_after_its_others() -> None:
    logits = normal(4)
    best = int(logits[0].argmax())
    logits[:] = logits[0]
    generated = [(), (1, 2), (2,), (2, 1)]
    states = [state(generated=each, bad_words=frozenset({(1, 2, best)}), temperature=0) for each in generated]
    chosen = sample(logits, states)
    assert [token == best for token in chosen] == [True, False, True, True]


def test_a_bad_word_of_one_token_is_never_chosen() -> None:
    logits = normal(1)
    best = int(logits.argmax())
    assert sample(logits, [state(bad_words=frozenset({(best,)}), temperature=0)]) != [best]


def test_no_token_is_chosen_if_none_is_allowed() -> None:
    states = [state(allowed_token_ids=frozenset({3}), bad_words=frozenset({(3,)}), temperature=0)]
    assert sample(normal(1), states) == [None]


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("params", [{"temperature": 0}, {"top_k": 1}, {"top_p": 1e-6}, {"min_tokens": 9}], ids=str)
def test_a_masked_token_gives_way_to_the_next_one_in_its_own_row_only(params: dict[str, Any]) -> None:
    logits = normal(2)
    logits[:, 20], logits[:, 30] = 90.0, 60.0
    rows = [state(masked_tokens=frozenset({20, VOCABULARY}), **params), state(**params)]  # one is not in the model
    assert sample(logits, rows) == [30, 20]


def test_a_masked_first_token_may_come_later() -> None:
    logits = normal(2)
    logits[:, 20], logits[:, 30] = 90.0, 60.0
    rows = [state(generated=each, masked_first_tokens=frozenset({20}), temperature=0) for each in ((), (5,))]
    assert sample(logits, rows) == [30, 20]
