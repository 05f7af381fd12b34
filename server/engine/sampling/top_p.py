"""Thresholds of top-k, top-p and min-p. Sorts the full vocabulary only if its head is not enough."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from server.engine.sampling.grouped_logits import GROUP, GroupedLogits, exponentials, select_rows

HEAD = 128  # largest logits that are tried before all are sorted


@dataclass(frozen=True)
class Filters:
    """Filter parameters of some rows, each ``(rows,)``."""

    temperatures: torch.Tensor  # float32, above 0
    top_k: torch.Tensor  # int64, 0 keeps all
    top_p: torch.Tensor  # float32, infinite keeps all
    log_min_p: torch.Tensor  # float32

    def of(self, places: torch.Tensor) -> Filters:
        return Filters(self.temperatures[places], self.top_k[places], self.top_p[places], self.log_min_p[places])


def lowest_scores(grouped: GroupedLogits, rows: torch.Tensor, filters: Filters) -> torch.Tensor:
    """Return the lowest ``logit / temperature`` that the filters keep in each row, float32 ``(n,)``.

    The filters keep what transformers' warpers keep: top-k keeps all tokens that equal the last one; top-p keeps as
    many of the tokens that equal the last one as reach the mass, here those with the smallest ids. The logits of the
    others among the equal ones are set to ``-inf``.

    Args:
        rows: rows of the logits, int64 ``(n,)``.
        filters: parameters of these rows.
    """
    lowest = torch.full_like(filters.temperatures, -torch.inf)
    is_open = (filters.top_k > 0) | filters.top_p.isfinite()
    if grouped.size > HEAD * HEAD:  # sorting a smaller one is faster than finding its head
        places = (is_open & (filters.top_k < HEAD)).nonzero()[:, 0]
        for tile in grouped.tiles(places, HEAD * GROUP):
            part, head = filters.of(tile), grouped.largest(rows[tile], HEAD)[0]
            total = _total(grouped, rows[tile], part)
            lowest[tile], is_certain = _search(grouped, rows[tile], part, head, total)
            is_open[tile] = ~is_certain
    for tile in grouped.tiles(is_open.nonzero()[:, 0]):
        ordered = _descending(select_rows(grouped.logits, rows[tile]))
        lowest[tile], _ = _search(grouped, rows[tile], filters.of(tile), ordered, None)
    highest = grouped.maxima[rows] / filters.temperatures
    return lowest.maximum(highest + filters.log_min_p)


def _search(
    grouped: GroupedLogits, rows: torch.Tensor, filters: Filters, ordered: torch.Tensor, total: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the lowest score that top-k and top-p keep, and whether it is certain.

    Args:
        ordered: the largest logits, or all of them, in descending order ``(n, count)``.
        total: weight of all tokens ``(n,)``, if ``ordered`` does not hold all.

    Returns:
        Both ``(n,)``. The score is not certain if a logit outside ``ordered`` may reach it.
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
    # If even a masked token would be kept, as when a grammar allows few, then all possible ones are in ``ordered``.
    is_all = lowest.isneginf()
    # Rows where the cut is between equal scores.
    is_cut = ((following == lowest) & ~is_all)[:, 0].logical_and(num_left < count).nonzero()[:, 0]
    is_certain = ((scores[:, -1:] < lowest) | is_all)[:, 0] | (count >= grouped.size)
    is_cut = is_cut[is_certain[is_cut]]
    if len(is_cut):
        num_higher = (scores[is_cut] > lowest[is_cut]).sum(-1)
        _drop_equals(grouped, rows[is_cut], filters.temperatures[is_cut], lowest[is_cut], num_left[is_cut] - num_higher)
    return lowest[:, 0], is_certain


def _drop_equals(
    grouped: GroupedLogits,
    rows: torch.Tensor,
    temperatures: torch.Tensor,
    lowest: torch.Tensor,
    num_left: torch.Tensor,
) -> None:
    """Mask the tokens of the lowest score except the first ``num_left`` of each row."""
    for part in grouped.tiles(torch.arange(len(rows), device=rows.device)):
        scores = select_rows(grouped.logits, rows[part]) / temperatures[part, None]
        row, token = (scores == lowest[part]).nonzero(as_tuple=True)
        first = torch.searchsorted(row, torch.arange(len(part), device=rows.device))
        rank = torch.arange(len(row), device=rows.device) - first[row]
        is_over = rank >= num_left[part][row]
        grouped.logits[rows[part][row[is_over]], token[is_over]] = -torch.inf


def _total(grouped: GroupedLogits, rows: torch.Tensor, filters: Filters) -> torch.Tensor:
    """Return the weight of all tokens ``(n,)``, for rows with top-p and without top-k."""
    total = torch.ones(len(rows), device=rows.device)
    places = ((filters.top_k == 0) & filters.top_p.isfinite()).nonzero()[:, 0]
    if len(places):
        weights = grouped.group_weights(rows[places], filters.temperatures[places])
        total[places] = weights.cumsum(-1)[:, -1].float()
    return total


def _descending(logits: torch.Tensor) -> torch.Tensor:
    """Return the sorted logits of each row; on a CPU NumPy sorts a vocabulary 25 times faster than torch."""
    if logits.is_cuda:
        return logits.sort(-1, descending=True).values
    return torch.from_numpy(np.sort(logits.numpy(), -1)).flip(-1)
