"""Sampling of one token a row, vectorised over the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from server.engine.sampling.grouped_logits import GROUP, GroupedLogits
from server.engine.sampling.native_choice import choose_natively
from server.engine.sampling.penalties import adjust
from server.engine.sampling.random_numbers import uniforms
from server.engine.sampling.sampling_state import SamplingState
from server.engine.sampling.top_p import Filters, lowest_scores
from server.kernels.upload import upload
from server.model.step import HostLogits

if TYPE_CHECKING:
    from server.kernels.native.library import Kernels

MASKED = -1e30  # a logit of no weight at any temperature, but finite: others that are not are an error
Choice = Callable[[GroupedLogits, torch.Tensor, Sequence[SamplingState]], torch.Tensor]


def sample(
    logits: torch.Tensor | HostLogits,
    states: Sequence[SamplingState],
    eos_token_ids: frozenset[int] = frozenset(),
    kernels: Kernels | None = None,
) -> list[int | None]:
    """Sample one token a row.

    Masks, penalties, biases and ``min_tokens`` change the logits; then temperature, top-k, top-p and min-p apply in the
    order of transformers' logits processors. A row's token depends only on its own logits, parameters, seed and
    position: a uniform number of that seed and position is looked up in the cumulative distribution over ascending
    token ids.

    Logits on a CUDA device stay there, but for rows that ``needs_host``.

    Args:
        logits: float32 ``(rows, vocabulary)``; they are changed.
        states: the sampling state of each row.
        eos_token_ids: end tokens, which are masked before ``min_tokens``.
        kernels: choose the tokens; without them torch does, and may choose another one where a random number falls on
            the border of two.

    Returns:
        The tokens; None for a row whose logits are not finite or allow no token.
    """
    is_plain = True
    for state in states:
        is_plain = is_plain and state.is_plain
    if isinstance(logits, HostLogits):
        if is_plain and kernels is not None:  # as in most steps
            return choose_natively(kernels, logits, states, _draws(states))
        logits = logits.tensor()
    if is_plain and not logits.is_cuda and not any(state.params.temperature for state in states):
        return _most_likely_of_all(logits)
    return _sample_changed(logits, states, eos_token_ids, kernels)


@torch.inference_mode()
def _sample_changed(
    logits: torch.Tensor,
    states: Sequence[SamplingState],
    eos_token_ids: frozenset[int] = frozenset(),
    kernels: Kernels | None = None,
) -> list[int | None]:
    """Sample rows of which some are changed, or which torch samples."""
    apart = [row for row, state in enumerate(states) if state.needs_host] if logits.is_cuda else []
    if apart:
        return _sample_apart(logits, states, apart, eos_token_ids)
    _mask(logits, states)
    if all(state.is_greedy for state in states):
        return _most_likely_of_all(logits)
    if kernels is not None and not logits.is_cuda:
        if not any(state.changes_logits for state in states):
            return choose_natively(kernels, HostLogits.of(logits), states, _draws(states))
        finite = _are_finite(logits)  # before the changes
        adjusted = adjust(logits, states, eos_token_ids)
        natively = choose_natively(kernels, HostLogits.of(logits), states, _draws(states), adjusted)
        return [token if is_finite else None for token, is_finite in zip(natively, finite, strict=True)]
    grouped = GroupedLogits(logits)
    adjusted = adjust(grouped.logits, states, eos_token_ids)
    if adjusted:
        grouped.measure(_indices(logits, adjusted))
    finite = grouped.are_finite()
    chosen: list[int | None] = [None] * len(states)
    for choose, rows in _by_choice(states, finite).items():
        tokens = choose(grouped, _indices(logits, rows), [states[row] for row in rows])
        for row, token in zip(rows, tokens.tolist(), strict=True):
            chosen[row] = token
    return chosen


def _sample_apart(
    logits: torch.Tensor, states: Sequence[SamplingState], apart: Sequence[int], eos_token_ids: frozenset[int]
) -> list[int | None]:
    """Sample some rows on the host, and the others where they are; so no row's token depends on other rows."""
    tokens: list[int | None] = [None] * len(states)
    others = [row for row in range(len(states)) if row not in set(apart)]
    for rows, part in ((apart, logits[list(apart)].cpu()), (others, logits[others])):
        if rows:
            found = _sample_changed(part, [states[row] for row in rows], eos_token_ids)
            for row, token in zip(rows, found, strict=True):
                tokens[row] = token
    return tokens


def _mask(logits: torch.Tensor, states: Sequence[SamplingState]) -> None:
    """Mask the tokens that ``masked_tokens`` and ``masked_first_tokens`` name, whatever else applies to a row."""
    size = logits.shape[-1]
    places = [(row, token) for row, state in enumerate(states) for token in state.masked if token < size]
    if places:
        rows, tokens = zip(*places, strict=True)
        logits[list(rows), list(tokens)] = MASKED


def _are_finite(logits: torch.Tensor) -> list[bool]:
    rows = logits.numpy()
    extremes = zip(rows.min(-1).tolist(), rows.max(-1).tolist(), strict=True)
    return [math.isfinite(low) and math.isfinite(high) for low, high in extremes]


def _most_likely_of_all(logits: torch.Tensor) -> list[int | None]:
    """Return the most likely token of each row of unchanged logits; None for rows that are not finite."""
    if logits.is_cuda:
        most, tokens = logits.max(-1)
        is_finite = most.isfinite() & logits.amin(-1).isfinite()
        found = torch.where(is_finite, tokens, -1).tolist()
        return [token if token >= 0 else None for token in found]
    rows = logits.numpy()  # numpy's calls take a fraction of the time of torch's
    tokens = rows.argmax(-1).tolist()  # of a row with a NaN, that of the NaN
    least = rows.min(-1).tolist()
    return [
        token if math.isfinite(low) and math.isfinite(row[token]) else None
        for row, token, low in zip(rows, tokens, least, strict=True)
    ]


def _by_choice(states: Sequence[SamplingState], finite: Sequence[bool]) -> dict[Choice, list[int]]:
    """Group the rows by the function that chooses their tokens."""
    rows: dict[Choice, list[int]] = {}
    for row, state in enumerate(states):
        if finite[row]:
            params = state.params
            choose = _most_likely if params.temperature == 0 else _sample_filtered if params.has_filters else _sample
            rows.setdefault(choose, []).append(row)
    return rows


def _most_likely(grouped: GroupedLogits, rows: torch.Tensor, _states: Sequence[SamplingState]) -> torch.Tensor:
    return grouped.argmax(rows)


def _sample(grouped: GroupedLogits, rows: torch.Tensor, states: Sequence[SamplingState]) -> torch.Tensor:
    return _select(grouped, rows, states, _temperatures(rows, states))


def _sample_filtered(grouped: GroupedLogits, rows: torch.Tensor, states: Sequence[SamplingState]) -> torch.Tensor:
    params = [state.params for state in states]
    filters = Filters(
        temperatures=_temperatures(rows, states),
        top_k=upload(np.array([param.top_k for param in params], np.int64), rows.device),
        top_p=_column(rows, [param.top_p if param.top_p < 1 else math.inf for param in params]),
        log_min_p=_column(rows, [state.log_min_p for state in states]),
    )
    return _select(grouped, rows, states, filters.temperatures, lowest_scores(grouped, rows, filters))


def _select(
    grouped: GroupedLogits,
    rows: torch.Tensor,
    states: Sequence[SamplingState],
    temperatures: torch.Tensor,
    lowest: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the token that each row's random number selects: first its group, then its index in the group."""
    draws = upload(np.array(_draws(states), np.float64), rows.device)
    masses = grouped.group_weights(rows, temperatures, lowest)  # (rows, groups)
    group = _select_index(masses, draws)
    sums = masses.cumsum(-1)
    mass, through = (values.gather(1, group[:, None])[:, 0] for values in (masses, sums))
    within = (draws * sums[:, -1] - (through - mass)) / mass
    weights = grouped.weights_in_group(rows, group, temperatures, lowest)
    return group * GROUP + _select_index(weights, within.clamp(0, 1))


def _draws(states: Sequence[SamplingState]) -> list[float]:
    return uniforms([state.seed for state in states], [state.num_generated for state in states])


def _select_index(weights: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Return the index where the cumulative sum of the weights passes the draw's part of the total, int64 ``(rows,)``.

    Args:
        weights: float64 ``(rows, indices)``, some above 0.
        draws: float64 ``(rows,)`` in ``[0, 1]``.
    """
    sums = weights.cumsum(-1)
    target = (draws * sums[:, -1])[:, None]
    # A target equal to the total would select an index after the last possible one.
    last = (sums < sums[:, -1:]).sum(-1, keepdim=True)
    return torch.searchsorted(sums, target, right=True).minimum(last)[:, 0]


def _indices(logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    return upload(np.array(rows, np.int64), logits.device)


def _temperatures(rows: torch.Tensor, states: Sequence[SamplingState]) -> torch.Tensor:
    return _column(rows, [state.divisor for state in states])


def _column(like: torch.Tensor, values: Sequence[float]) -> torch.Tensor:
    return upload(np.array(values, np.float32), like.device)
