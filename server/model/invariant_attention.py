"""Attention whose bits depend on a query and the keys it sees, not on how the step was cut.

Keys are taken in segments that begin at fixed positions of the sequence, each multiplied in tiles of fixed size, and
segments are added up in order by the online softmax (Milakov and Gimelshein 2018, arXiv:1805.02867), in which a
segment that a query does not see counts exactly nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from server.kernels.tiles import in_usual_layout, product

from .seam import AttentionOptions

SEGMENT = 128  # keys
LOWEST = -1e30  # below any score, and finite, so that a query that has seen nothing yet has no NaN


def attend_invariant(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, first_key: int, options: AttentionOptions
) -> torch.Tensor:
    """As ``attend_sequence``, with the same bits for a token however its sequence is cut into steps.

    Scores and products with values are rounded to the dtype of the query, segment by segment; the rest is float32.
    """
    heads, new = query.shape[:2]
    kv_heads, kept, _ = key.shape
    groups, last = heads // kv_heads, first_key + kept
    # A column is one query of one head; those that share keys lie together: (kv_heads, groups * new, key_dim).
    columns = query.reshape(kv_heads, groups * new, -1)
    positions = torch.arange(last - new, last, device=query.device).repeat(groups)  # of each column
    summed = _Summed(kv_heads, groups, new, value.shape[-1], options.sinks, query.device)
    for start, keys, values in _segments(key, value, first_key):
        scores = product(keys, columns).float() * options.scaling  # (kv_heads, columns, segment)
        if options.softcap is not None:
            scores = torch.tanh(scores / options.softcap) * options.softcap
        seen = _seen(positions, start, options.sliding_window)
        summed.add(scores.masked_fill_(~seen, -torch.inf), values)
    return summed.output().view(heads, new, -1).to(query.dtype)


class _Summed:
    """Softmax over the segments so far: their largest score, the sum of weights, and the weighted values."""

    def __init__(
        self,
        kv_heads: int,
        groups: int,
        new: int,
        value_dim: int,
        sinks: torch.Tensor | None,
        device: torch.device,
    ):
        shape = (kv_heads, groups * new, 1)
        if sinks is None:
            self._largest = torch.full(shape, LOWEST, device=device)
            self._weight = torch.zeros(shape, device=device)
        else:  # a sink is a first score without a value
            self._largest = sinks.float().view(kv_heads, groups, 1).repeat_interleave(new, 1)
            self._weight = torch.ones(shape, device=device)
        self._values = torch.zeros((*shape[:2], value_dim), device=device)

    def add(self, scores: torch.Tensor, values: torch.Tensor) -> None:
        """``scores (kv_heads, columns, segment)``, ``values (kv_heads, segment, value_dim)``."""
        found = scores.amax(-1, keepdim=True).clamp_min(LOWEST)
        weights = torch.exp(scores - found)
        largest = torch.maximum(self._largest, found)
        kept, added = torch.exp(self._largest - largest), torch.exp(found - largest)
        self._weight = self._weight * kept + weights.sum(-1, keepdim=True) * added
        self._values = self._values * kept + product(values.mT, weights.to(values.dtype)).float() * added
        self._largest = largest

    def output(self) -> torch.Tensor:
        return self._values / self._weight


def _segments(
    key: torch.Tensor, value: torch.Tensor, first_key: int
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """The position where each segment begins, and its keys and values, filled up with zeros."""
    last = first_key + key.shape[1]
    for start in range(first_key // SEGMENT * SEGMENT, last, SEGMENT):
        yield start, _segment(key, start - first_key), _segment(value, start - first_key)


def _segment(tensor: torch.Tensor, start: int) -> torch.Tensor:
    part = tensor[:, max(0, start) : start + SEGMENT]
    if part.shape[1] == SEGMENT:
        return in_usual_layout(part)
    before = max(0, -start)
    return F.pad(part, (0, 0, before, SEGMENT - before - part.shape[1]))


def _seen(positions: torch.Tensor, start: int, window: int | None) -> torch.Tensor:
    """Which keys of a segment each column sees, ``(columns, segment)``."""
    keys = torch.arange(start, start + SEGMENT, device=positions.device)
    seen = keys <= positions[:, None]
    return seen if window is None else seen & (keys > positions[:, None] - window)
