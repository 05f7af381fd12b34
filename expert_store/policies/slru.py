"""Segmented least recently used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import chain

from expert_store.keys import ExpertKey
from expert_store.policies.base import TouchesEach

PROTECTED_SHARE = 0.8


class SlruPolicy(TouchesEach):
    """Two LRU segments: keys that are used again are protected, and keys of the probationary segment are evicted first.

    A full protected segment returns its oldest key to the other one. Karedla, Love, Wherry, "Caching strategies to
    improve disk system performance", 1994.
    """

    def __init__(self, num_slots: int) -> None:
        self._probation: OrderedDict[ExpertKey, None] = OrderedDict()
        self._protected: OrderedDict[ExpertKey, None] = OrderedDict()
        self.resize(num_slots)

    def insert(self, key: ExpertKey) -> None:
        self._probation[key] = None

    def touch(self, key: ExpertKey) -> None:
        if key in self._protected:
            self._protected.move_to_end(key)
            return
        del self._probation[key]
        self._protected[key] = None
        self._demote()

    def remove(self, key: ExpertKey) -> None:
        del (self._protected if key in self._protected else self._probation)[key]

    def victim(self, incoming: ExpertKey, is_evictable: Callable[[ExpertKey], bool]) -> ExpertKey | None:
        del incoming
        return next((key for key in chain(self._probation, self._protected) if is_evictable(key)), None)

    def resize(self, num_slots: int) -> None:
        self._most_protected = int(PROTECTED_SHARE * num_slots)
        self._demote()

    def _demote(self) -> None:
        while len(self._protected) > self._most_protected:
            key, _ = self._protected.popitem(last=False)
            self._probation[key] = None
