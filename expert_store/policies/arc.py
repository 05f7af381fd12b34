"""Adaptive replacement cache."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import chain

from expert_store.keys import ExpertKey
from expert_store.policies.base import TouchesEach

_Order = OrderedDict[ExpertKey, None]


class ArcPolicy(TouchesEach):
    """Divides its slots between keys used once and keys used again, by the misses of each.

    Each of the two LRU lists has a ghost list, the keys that it evicted last. A miss that is found in a ghost list
    moves the target size of the first list in favour of the list that should have kept the key. Ghosts and residents
    together are at most twice the slots. Megiddo, Modha, "ARC: a self-tuning, low overhead replacement cache", 2003.
    """

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._target = 0.0  # size of the list of keys used once
        self._once: _Order = OrderedDict()
        self._again: _Order = OrderedDict()
        self._once_ghost: _Order = OrderedDict()
        self._again_ghost: _Order = OrderedDict()

    def insert(self, key: ExpertKey) -> None:
        self._target = self._target_with(key)
        if key in self._once_ghost:
            del self._once_ghost[key]
            self._again[key] = None
        elif key in self._again_ghost:
            del self._again_ghost[key]
            self._again[key] = None
        else:
            self._once[key] = None
        self._trim()

    def touch(self, key: ExpertKey) -> None:
        if key in self._again:
            self._again.move_to_end(key)
        else:
            del self._once[key]
            self._again[key] = None

    def remove(self, key: ExpertKey) -> None:
        if key in self._once:
            del self._once[key]
            self._once_ghost[key] = None
        else:
            del self._again[key]
            self._again_ghost[key] = None
        self._trim()

    def victim(self, incoming: ExpertKey, is_evictable: Callable[[ExpertKey], bool]) -> ExpertKey | None:
        size, target = len(self._once), self._target_with(incoming)
        once_first = size > target or (size == target and incoming in self._again_ghost)
        order = chain(self._once, self._again) if once_first else chain(self._again, self._once)
        return next((key for key in order if is_evictable(key)), None)

    def resize(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._target = min(self._target, num_slots)
        self._trim()

    def _target_with(self, key: ExpertKey) -> float:
        """Return the target after a miss of ``key``."""
        once, again = len(self._once_ghost), len(self._again_ghost)
        if key in self._once_ghost:
            return min(self._target + max(1.0, again / once), self._num_slots)
        if key in self._again_ghost:
            return max(self._target - max(1.0, once / again), 0.0)
        return self._target

    def _trim(self) -> None:
        while self._once_ghost and len(self._once) + len(self._once_ghost) > self._num_slots:
            self._once_ghost.popitem(last=False)
        residents = len(self._once) + len(self._again)
        while self._again_ghost and (residents + len(self._once_ghost) + len(self._again_ghost) > 2 * self._num_slots):
            self._again_ghost.popitem(last=False)
