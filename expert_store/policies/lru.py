"""Least recently used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from expert_store.keys import ExpertKey

from .base import TouchesEach


class LruPolicy(TouchesEach):
    """Gives up the key that was asked for longest ago."""

    def __init__(self, num_slots: int) -> None:
        del num_slots  # the order is the same at any size
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
        """Nothing depends on it."""
