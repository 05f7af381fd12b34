"""Least frequently and recently used."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Sequence
from math import log2
from operator import attrgetter

from expert_store.keys import ExpertKey

HALF_LIFE = 8.0  # look-ups per slot
GHOSTS_PER_SLOT = 8
BUCKETS_PER_OCTAVE = 8
ROUNDING = 1e-9  # part of a bucket; sums that differ by rounding errors alone share one
SLACK = 64  # empty buckets that may stay in the heap
FURTHEST = 512.0  # half-lives since the origin; a float can still add up powers of two that large


class LfruPolicy:
    """Evicts the key whose uses have the smallest sum, where the weight of a use halves with every half-life.

    The sum of a key, seen from a fixed time, is ``sum(2 ** (time / half_life))`` and does not change as time goes on,
    so neither does the order of keys. Its logarithm selects one of many buckets, each in order of recency. Keys are put
    into their buckets only when a victim is needed, since most uses need none. The sums of keys that were evicted
    lately are kept, ``GHOSTS_PER_SLOT`` for each slot. LRFU: Lee et al., "LRFU: a spectrum of policies
    that subsumes the least recently used and least frequently used policies", 2001.
    """

    def __init__(self, num_slots: int) -> None:
        self._now = 0.0  # in half-lives, like all times here
        self._origin = 0.0  # the fixed time from which sums are seen
        self._sums: dict[ExpertKey, _Sum] = {}
        self._used: list[_Sum] = []  # sums of keys that were used since they were put into buckets
        self._ghosts: OrderedDict[ExpertKey, float] = OrderedDict()  # logarithms, seen from time 0
        self._buckets: dict[int, OrderedDict[ExpertKey, None]] = {}
        self._numbers: list[int] = []  # a heap of the numbers of all buckets, and of some that are empty
        self.resize(num_slots)

    def insert(self, key: ExpertKey) -> None:
        self._now += self._step
        ghost = self._ghosts.pop(key, None)
        past = 0.0 if ghost is None else 2.0 ** (ghost - self._origin)
        entry = self._sums[key] = _Sum(key, past + 2.0 ** (self._now - self._origin), self._now)
        self._used.append(entry)
        if self._now - self._origin > FURTHEST:
            self._move_origin()

    def touch(self, key: ExpertKey) -> None:
        self.touch_all((key,))

    def touch_all(self, keys: Sequence[ExpertKey]) -> None:
        now, step, growth, sums, used = self._now, self._step, self._growth, self._sums, self._used
        value = 2.0 ** (now - self._origin)
        for key in keys:
            now += step
            value *= growth
            entry = sums[key]
            entry.value += value
            entry.used_at = now
            if entry.is_placed:
                entry.is_placed = False
                used.append(entry)
        self._now = now
        if now - self._origin > FURTHEST:
            self._move_origin()

    def remove(self, key: ExpertKey) -> None:
        self._place()
        entry = self._sums.pop(key)
        self._take_out(entry)
        self._ghosts[key] = self._logarithm(entry)
        self._trim()

    def victim(self, incoming: ExpertKey, is_evictable: Callable[[ExpertKey], bool]) -> ExpertKey | None:
        del incoming
        self._place()
        while self._numbers and self._numbers[0] not in self._buckets:
            heapq.heappop(self._numbers)
        if not self._numbers:
            return None
        # The other buckets are sorted only when no key of the first is evictable.
        first = next((key for key in self._buckets[self._numbers[0]] if is_evictable(key)), None)
        if first is not None:
            return first
        return next(
            (key for number in sorted(self._buckets) for key in self._buckets[number] if is_evictable(key)), None
        )

    def resize(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._step = 1.0 / (HALF_LIFE * max(num_slots, 1))
        self._growth = 2.0**self._step
        self._trim()

    def _place(self) -> None:
        """Put keys that were used into their buckets, in the order of their last uses."""
        if not self._used:
            return
        self._used.sort(key=attrgetter("used_at"))
        for entry in self._used:
            self._take_out(entry)
            number = entry.bucket = int(BUCKETS_PER_OCTAVE * self._logarithm(entry) + ROUNDING)
            bucket = self._buckets.get(number)
            if bucket is None:
                bucket = self._buckets[number] = OrderedDict()
                heapq.heappush(self._numbers, number)
                if len(self._numbers) > 2 * len(self._buckets) + SLACK:
                    self._numbers = sorted(self._buckets)
            bucket[entry.key] = None
            entry.is_placed = True
        self._used.clear()

    def _take_out(self, entry: _Sum) -> None:
        if entry.bucket is not None:
            bucket = self._buckets[entry.bucket]
            del bucket[entry.key]
            if not bucket:
                del self._buckets[entry.bucket]
            entry.bucket = None

    def _logarithm(self, entry: _Sum) -> float:
        return self._origin + log2(entry.value)

    def _move_origin(self) -> None:
        """Make now the origin, before sums grow beyond what a float can hold."""
        smaller = 2.0 ** (self._origin - self._now)
        for entry in self._sums.values():
            entry.value = max(entry.value * smaller, 2.0**-FURTHEST)
        self._origin = self._now

    def _trim(self) -> None:
        while len(self._ghosts) > GHOSTS_PER_SLOT * self._num_slots:
            self._ghosts.popitem(last=False)


class _Sum:
    """The weighted sum of uses of a resident key."""

    __slots__ = ("bucket", "is_placed", "key", "used_at", "value")

    def __init__(self, key: ExpertKey, value: float, used_at: float) -> None:
        self.key, self.value = key, value  # seen from the origin
        self.used_at = used_at
        self.bucket: int | None = None
        self.is_placed = False  # in the bucket of its value
