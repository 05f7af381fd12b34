"""Least frequently and recently used."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable
from math import log2

from expert_store.keys import ExpertKey

HALF_LIFE = 8.0  # look-ups a slot
GHOSTS_A_SLOT = 8
BUCKETS_PER_OCTAVE = 8
SLACK = 64  # buckets that are gone and may stay in the heap


class LfruPolicy:
    """Gives up the key whose past requests, each halved with every half-life since, add up to the least.

    The sum of a key, seen from a fixed time, is ``log2(sum(2 ** (time / half_life)))`` and does not change as time goes
    on, so neither does the order of keys. It is cut into whole buckets, each in order of recency. The sums of keys that
    were given up lately are kept, ``GHOSTS_A_SLOT`` for each slot. LRFU: Lee et al., "LRFU: a spectrum of policies that
    subsumes the least recently used and least frequently used policies", 2001.
    """

    def __init__(self, num_slots: int) -> None:
        self._now = 0.0  # in half-lives
        self._scores: dict[ExpertKey, float] = {}
        self._ghosts: OrderedDict[ExpertKey, float] = OrderedDict()
        self._buckets: dict[int, OrderedDict[ExpertKey, None]] = {}
        self._numbers: list[int] = []  # a heap of all buckets, and of some that are gone
        self.resize(num_slots)

    def insert(self, key: ExpertKey) -> None:
        self._now += self._step
        self._put(key, self._ghosts.pop(key, None))

    def touch(self, key: ExpertKey) -> None:
        self._now += self._step
        self._put(key, self._take_out(key))

    def remove(self, key: ExpertKey) -> None:
        self._ghosts[key] = self._take_out(key)
        self._trim()

    def victim(self, incoming: ExpertKey, is_evictable: Callable[[ExpertKey], bool]) -> ExpertKey | None:
        del incoming
        while self._numbers and self._numbers[0] not in self._buckets:
            heapq.heappop(self._numbers)
        if not self._numbers:
            return None
        # Only when all of the first bucket is leased are the others put in order.
        first = next((key for key in self._buckets[self._numbers[0]] if is_evictable(key)), None)
        if first is not None:
            return first
        return next(
            (key for number in sorted(self._buckets) for key in self._buckets[number] if is_evictable(key)), None
        )

    def resize(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._step = 1.0 / (HALF_LIFE * max(num_slots, 1))
        self._trim()

    def _put(self, key: ExpertKey, score: float | None) -> None:
        """Add a request that is made now to a sum."""
        now = self._now
        score = now if score is None else max(score, now) + log2(1.0 + 2.0 ** -abs(score - now))
        self._scores[key] = score
        number = int(score * BUCKETS_PER_OCTAVE)
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = OrderedDict()
            heapq.heappush(self._numbers, number)
            if len(self._numbers) > 2 * len(self._buckets) + SLACK:
                self._numbers = sorted(self._buckets)
        bucket[key] = None

    def _take_out(self, key: ExpertKey) -> float:
        score = self._scores.pop(key)
        number = int(score * BUCKETS_PER_OCTAVE)
        bucket = self._buckets[number]
        del bucket[key]
        if not bucket:
            del self._buckets[number]
        return score

    def _trim(self) -> None:
        while len(self._ghosts) > GHOSTS_A_SLOT * self._num_slots:
            self._ghosts.popitem(last=False)
