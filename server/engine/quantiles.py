"""Quantiles of observations that were counted by bucket."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


def quantile(share: float, bounds: Sequence[float], cumulative: Sequence[int]) -> float | None:
    """Return a quantile as Prometheus' ``histogram_quantile`` does: interpolated within its bucket.

    Args:
        share: of the observations that are not larger, above 0, up to 1.
        bounds: upper bounds of the buckets, ascending; the first bucket begins at 0.
        cumulative: the number of observations up to each bound, and of all.

    Returns:
        None without observations; the last bound if it is larger than that.
    """
    rank = share * cumulative[-1]
    if not rank:
        return None
    bucket = bisect_left(cumulative, rank)
    if bucket == len(bounds):
        return bounds[-1]
    below, start = (cumulative[bucket - 1], bounds[bucket - 1]) if bucket else (0, 0.0)
    return start + (bounds[bucket] - start) * (rank - below) / (cumulative[bucket] - below)
