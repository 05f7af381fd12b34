"""Histogram that one thread writes without a lock and others read."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate


class Histogram:
    """Counts of observations by bucket.

    Args:
        bounds: upper bounds of the buckets, ascending; one more bucket holds larger values.
    """

    def __init__(self, bounds: Sequence[float]):
        self.bounds = tuple(bounds)
        self.sum = 0.0
        self._counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        self.sum += value
        self._counts[bisect_left(self.bounds, value)] += 1

    def cumulative(self) -> list[int]:
        """Return the number of observations up to each bound, and of all, as of one moment."""
        return list(accumulate(list(self._counts)))
