"""Logits to tokens, vectorised over the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from .draws import uniforms
from .nucleus import Filters, lowest_scores
from .penalties import adjust
from .sampling_state import SamplingState
from .vocabulary import BLOCK, Vocabulary

LEAST_TEMPERATURE = 1e-3  # as good as greedy; quotients of logits stay finite
Choice = Callable[[Vocabulary, torch.Tensor, Sequence[SamplingState]], torch.Tensor]


@torch.inference_mode()
def sample(
    logits: torch.Tensor, states: Sequence[SamplingState], eos_token_ids: frozenset[int] = frozenset()
) -> list[int | None]:
    """Choose one token a row.

    Penalties, biases and ``min_tokens`` on the logits themselves, then temperature, top-k, top-p and min-p in the order
    of transformers' logits processors. A row's token depends on its own logits, parameters, seed and position alone:
    it is where a uniform number of that seed and position falls on the tokens in the order of their ids.

    Args:
        logits: float32 ``(rows, vocabulary)``; they are changed.
        states: of each row.
        eos_token_ids: impossible before ``min_tokens``.

    Returns:
        The tokens; None where the logits are not finite or leave no token possible.
    """
    if all(state.is_greedy for state in states):
        return _most_likely_of_all(logits)
    vocabulary = Vocabulary(logits)
    adjusted = adjust(vocabulary.logits, states, eos_token_ids)
    if adjusted:
        vocabulary.measure(_indices(logits, adjusted))
    finite = vocabulary.are_finite()
    chosen: list[int | None] = [None] * len(states)
    for choose, rows in _by_way(states, finite).items():
        tokens = choose(vocabulary, _indices(logits, rows), [states[row] for row in rows])
        for row, token in zip(rows, tokens.tolist(), strict=True):
            chosen[row] = token
    return chosen


def _most_likely_of_all(logits: torch.Tensor) -> list[int | None]:
    """The likeliest token of each row, where nothing changes its logits; None where they are not finite."""
    tokens = logits.argmax(-1).tolist()
    extremes = zip(*(values.tolist() for values in logits.aminmax(dim=-1)), strict=True)
    finite = [math.isfinite(least) and math.isfinite(most) for least, most in extremes]
    return [token if is_finite else None for token, is_finite in zip(tokens, finite, strict=True)]


def _by_way(states: Sequence[SamplingState], finite: Sequence[bool]) -> dict[Choice, list[int]]:
    """The rows that each way of choosing is for."""
    rows: dict[Choice, list[int]] = {}
    for row, state in enumerate(states):
        if finite[row]:
            params = state.params
            choose = _most_likely if params.temperature == 0 else _draw_filtered if params.has_filters else _draw
            rows.setdefault(choose, []).append(row)
    return rows


def _most_likely(vocabulary: Vocabulary, rows: torch.Tensor, _states: Sequence[SamplingState]) -> torch.Tensor:
    return vocabulary.argmax(rows)


def _draw(vocabulary: Vocabulary, rows: torch.Tensor, states: Sequence[SamplingState]) -> torch.Tensor:
    return _place(vocabulary, rows, states, _temperatures(rows, states))


def _draw_filtered(vocabulary: Vocabulary, rows: torch.Tensor, states: Sequence[SamplingState]) -> torch.Tensor:
    params = [state.params for state in states]
    filters = Filters(
        temperatures=_temperatures(rows, states),
        top_k=torch.tensor([param.top_k for param in params], device=rows.device),
        top_p=_column(rows, [param.top_p if param.top_p < 1 else math.inf for param in params]),
        log_min_p=_column(rows, [math.log(param.min_p) if param.min_p > 0 else -math.inf for param in params]),
    )
    return _place(vocabulary, rows, states, filters.temperatures, lowest_scores(vocabulary, rows, filters))


def _place(
    vocabulary: Vocabulary,
    rows: torch.Tensor,
    states: Sequence[SamplingState],
    temperatures: torch.Tensor,
    lowest: torch.Tensor | None = None,
) -> torch.Tensor:
    """The token on which each row's draw falls: first its block, then its place there."""
    numbers = uniforms([state.seed for state in states], [state.num_generated for state in states])
    draws = torch.from_numpy(numbers).to(rows.device)
    masses = vocabulary.block_weights(rows, temperatures, lowest)  # (rows, blocks)
    block = _fall(masses, draws)
    sums = masses.cumsum(-1)
    mass, through = (values.gather(1, block[:, None])[:, 0] for values in (masses, sums))
    within = (draws * sums[:, -1] - (through - mass)) / mass
    weights = vocabulary.weights_in_block(rows, block, temperatures, lowest)
    return block * BLOCK + _fall(weights, within.clamp(0, 1))


def _fall(weights: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """The place where the running sum of the weights passes the draw's part of the whole, int64 ``(rows,)``.

    Args:
        weights: float64 ``(rows, places)``, some above 0.
        draws: float64 ``(rows,)`` in ``[0, 1]``.
    """
    sums = weights.cumsum(-1)
    target = (draws * sums[:, -1])[:, None]
    # A target on the whole sum would be behind the last place that is possible.
    last = (sums < sums[:, -1:]).sum(-1, keepdim=True)
    return torch.searchsorted(sums, target, right=True).minimum(last)[:, 0]


def _indices(logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.long, device=logits.device)


def _temperatures(rows: torch.Tensor, states: Sequence[SamplingState]) -> torch.Tensor:
    return _column(rows, [max(state.params.temperature, LEAST_TEMPERATURE) for state in states])


def _column(like: torch.Tensor, values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)
