"""Least recently used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from expert_store.keys import ExpertKey
from expert_store.policies.base import TouchesEach


class LruPolicy(TouchesEach):
    """Evicts the key whose last use is longest ago."""

    def __init__(self, num_slots: int) -> None:
        del num_slots  # the order does not depend on it
        self._order: OrderedDict[ExpertKey, None] = OrderedDict()

    def insert(self, key: ExpertKey) -> None:
        self._order[key] = None

    def touch(self, key: ExpertKey) -> None:
        self._order.move_to_end(key)

    def remove(self, key: ExpertKey) -> None:
        del self._order[key]

    def victim(self, incoming: ExpertKey, is_evictable: Callable[[ExpertKey], bool]) -> ExpertKey | None:
        del incoming
        return next((key for key in self._order if is_evictable(key)), None)

    def resize(self, num_slots: int) -> None:
        """Do nothing, as the order does not depend on the number of slots."""
