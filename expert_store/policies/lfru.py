"""Least frequently and recently used."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Sequence
from math import log2
from operator import attrgetter

from expert_store.keys import ExpertKey

HALF_LIFE = 8.0  # look-ups a slot
GHOSTS_A_SLOT = 8
BUCKETS_PER_OCTAVE = 8
ROUNDING = 1e-9  # of a bucket; sums that are equal but for rounding share one
SLACK = 64  # buckets that are gone and may stay in the heap
FURTHEST = 512.0  # half-lives since the origin, whose powers of two a float can still add up


class LfruPolicy:
    """Gives up the key whose past requests, each halved with every half-life since, add up to the least.

    The sum of a key, seen from a fixed time, is ``sum(2 ** (time / half_life))`` and does not change as time goes on,
    so neither does the order of keys. Its logarithm is cut into whole buckets, each in order of recency; keys are put
    into their buckets when a victim is asked for, since most requests come where nothing has to go. The sums of keys
    that were given up lately are kept, ``GHOSTS_A_SLOT`` for each slot. LRFU: Lee et al., "LRFU: a spectrum of policies
    that subsumes the least recently used and least frequently used policies", 2001.
    """

    def __init__(self, num_slots: int) -> None:
        self._now = 0.0  # in half-lives, as are all times
        self._origin = 0.0  # the time from which sums are seen
        self._sums: dict[ExpertKey, _Sum] = {}
        self._asked: list[_Sum] = []  # those that were asked for since they were put into buckets
        self._ghosts: OrderedDict[ExpertKey, float] = OrderedDict()  # logarithms, from time 0
        self._buckets: dict[int, OrderedDict[ExpertKey, None]] = {}
        self._numbers: list[int] = []  # a heap of all buckets, and of some that are gone
        self.resize(num_slots)

    def insert(self, key: ExpertKey) -> None:
        self._now += self._step
        ghost = self._ghosts.pop(key, None)
        past = 0.0 if ghost is None else 2.0 ** (ghost - self._origin)
        entry = self._sums[key] = _Sum(key, past + 2.0 ** (self._now - self._origin), self._now)
        self._asked.append(entry)
        if self._now - self._origin > FURTHEST:
            self._move_origin()

    def touch(self, key: ExpertKey) -> None:
        self.touch_all((key,))

    def touch_all(self, keys: Sequence[ExpertKey]) -> None:
        now, step, growth, sums, asked = self._now, self._step, self._growth, self._sums, self._asked
        value = 2.0 ** (now - self._origin)
        for key in keys:
            now += step
            value *= growth
            entry = sums[key]
            entry.value += value
            entry.asked_at = now
            if entry.is_placed:
                entry.is_placed = False
                asked.append(entry)
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
        self._growth = 2.0**self._step
        self._trim()

    def _place(self) -> None:
        """Put what was asked for into its buckets, in the order of its last requests."""
        self._asked.sort(key=attrgetter("asked_at"))
        for entry in self._asked:
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
        self._asked.clear()

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
        """See sums from now on, before they grow beyond what a float can hold."""
        smaller = 2.0 ** (self._origin - self._now)
        for entry in self._sums.values():
            entry.value = max(entry.value * smaller, 2.0**-FURTHEST)
        self._origin = self._now

    def _trim(self) -> None:
        while len(self._ghosts) > GHOSTS_A_SLOT * self._num_slots:
            self._ghosts.popitem(last=False)


class _Sum:
    """The requests of a resident key."""

    __slots__ = ("asked_at", "bucket", "is_placed", "key", "value")

    def __init__(self, key: ExpertKey, value: float, asked_at: float) -> None:
        self.key, self.value = key, value  # as seen from the origin
        self.asked_at = asked_at
        self.bucket: int | None = None
        self.is_placed = False  # in the bucket of its value
