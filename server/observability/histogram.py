"""Observations by buckets, counted by one thread without a lock and read by another."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate


class Histogram:
    """How many observations were at most each of some bounds.

    Args:
        bounds: upper bounds of the buckets, ascending; one more bucket holds what is above.
    """

    def __init__(self, bounds: Sequence[float]):
        self.bounds = tuple(bounds)
        self.sum = 0.0
        self._counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        self.sum += value
        self._counts[bisect_left(self.bounds, value)] += 1

    def cumulative(self) -> list[int]:
        """Observations up to each bound, and at the end all of them; as of one moment."""
        return list(accumulate(list(self._counts)))
