"""Down to which score top-k, top-p and min-p leave tokens, without sorting a vocabulary where its head is enough."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .vocabulary import BLOCK, Vocabulary, exponentials, taken

HEAD = 128  # so many of the largest logits are looked at, before all of them are


@dataclass(frozen=True)
class Filters:
    """Parameters of some rows, each ``(rows,)``."""

    temperatures: torch.Tensor  # float32, above 0
    top_k: torch.Tensor  # int64, 0 for all
    top_p: torch.Tensor  # float32, infinite for all
    log_min_p: torch.Tensor  # float32

    def of(self, places: torch.Tensor) -> Filters:
        return Filters(self.temperatures[places], self.top_k[places], self.top_p[places], self.log_min_p[places])


def lowest_scores(vocabulary: Vocabulary, rows: torch.Tensor, filters: Filters) -> torch.Tensor:
    """The lowest ``logit / temperature`` that the filters leave in each row, float32 ``(n,)``.

    What is left is what transformers' warpers leave: of top-k all that equal the last one; of top-p as many of those
    that equal the last one as reach the mass, here those of the smallest ids. The others become impossible: their
    logits are changed to ``-inf``.

    Args:
        rows: of the vocabulary, int64 ``(n,)``.
        filters: of these rows.
    """
    lowest = torch.full_like(filters.temperatures, -torch.inf)
    is_open = (filters.top_k > 0) | filters.top_p.isfinite()
    if vocabulary.size > HEAD * HEAD:  # a smaller one is sorted before its head is found
        places = (is_open & (filters.top_k < HEAD)).nonzero()[:, 0]
        for tile in vocabulary.tiles(places, HEAD * BLOCK):
            part, head = filters.of(tile), vocabulary.largest(rows[tile], HEAD)[0]
            total = _total(vocabulary, rows[tile], part)
            lowest[tile], is_certain = _search(vocabulary, rows[tile], part, head, total)
            is_open[tile] = ~is_certain
    for tile in vocabulary.tiles(is_open.nonzero()[:, 0]):
        ordered = _descending(taken(vocabulary.logits, rows[tile]))
        lowest[tile], _ = _search(vocabulary, rows[tile], filters.of(tile), ordered, None)
    highest = vocabulary.maxima[rows] / filters.temperatures
    return lowest.maximum(highest + filters.log_min_p)


def _search(
    vocabulary: Vocabulary, rows: torch.Tensor, filters: Filters, ordered: torch.Tensor, total: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The lowest score that top-k and top-p leave, and whether it is certain.

    Args:
        ordered: the largest logits, or all, in descending order ``(n, count)``.
        total: weight of all tokens, if ``ordered`` are not all ``(n,)``.

    Returns:
        Both ``(n,)``. It is not certain where a logit that is not among ``ordered`` may reach it.
    """
    count = ordered.shape[-1]
    scores = ordered / filters.temperatures[:, None]
    mass = exponentials(scores - scores[:, :1]).cumsum(-1)
    num_left = torch.full_like(rows, count)
    total = mass[:, -1] if total is None else total
    if (filters.top_k > 0).any():
        is_limited = filters.top_k > 0
        last = scores.gather(1, (filters.top_k.clamp(1, count) - 1)[:, None])
        num_left = torch.where(is_limited, (scores >= last).sum(-1), num_left)
        total = torch.where(is_limited, mass.gather(1, num_left[:, None] - 1)[:, 0], total)
    num_in_mass = torch.searchsorted(mass, (filters.top_p * total)[:, None])[:, 0] + 1
    num_left = num_left.minimum(num_in_mass)
    lowest = scores.gather(1, num_left[:, None] - 1)
    following = scores.gather(1, num_left.clamp(max=count - 1)[:, None])
    # Where an impossible token would be left, as of few that a grammar allows, all others are among the largest.
    is_all = lowest.isneginf()
    is_cut = ((following == lowest) & ~is_all)[:, 0].logical_and(num_left < count).nonzero()[:, 0]  # between equals
    is_certain = ((scores[:, -1:] < lowest) | is_all)[:, 0] | (count >= vocabulary.size)
    is_cut = is_cut[is_certain[is_cut]]
    if len(is_cut):
        num_higher = (scores[is_cut] > lowest[is_cut]).sum(-1)
        _drop_equals(
            vocabulary, rows[is_cut], filters.temperatures[is_cut], lowest[is_cut], num_left[is_cut] - num_higher
        )
    return lowest[:, 0], is_certain


def _drop_equals(
    vocabulary: Vocabulary,
    rows: torch.Tensor,
    temperatures: torch.Tensor,
    lowest: torch.Tensor,
    num_left: torch.Tensor,
) -> None:
    """Make tokens of the lowest score impossible, but the first ``num_left`` of each row."""
    for part in vocabulary.tiles(torch.arange(len(rows), device=rows.device)):
        scores = taken(vocabulary.logits, rows[part]) / temperatures[part, None]
        row, token = (scores == lowest[part]).nonzero(as_tuple=True)
        first = torch.searchsorted(row, torch.arange(len(part), device=rows.device))
        rank = torch.arange(len(row), device=rows.device) - first[row]
        is_over = rank >= num_left[part][row]
        vocabulary.logits[rows[part][row[is_over]], token[is_over]] = -torch.inf


def _total(vocabulary: Vocabulary, rows: torch.Tensor, filters: Filters) -> torch.Tensor:
    """The weight of all tokens, where top-p is of all of them ``(n,)``."""
    total = torch.ones(len(rows), device=rows.device)
    places = ((filters.top_k == 0) & filters.top_p.isfinite()).nonzero()[:, 0]
    if len(places):
        weights = vocabulary.block_weights(rows[places], filters.temperatures[places])
        total[places] = weights.cumsum(-1)[:, -1].float()
    return total


def _descending(logits: torch.Tensor) -> torch.Tensor:
    """The logits of each row sorted; on a CPU NumPy sorts a vocabulary 25 times faster than torch."""
    if logits.is_cuda:
        return logits.sort(-1, descending=True).values
    return torch.from_numpy(np.sort(logits.numpy(), -1)).flip(-1)
