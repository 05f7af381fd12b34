"""Least recently used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from expert_store.catalog import ExpertKey


class LruPolicy:
    """Gives up the key that was asked for longest ago."""

    def __init__(self) -> None:
        self._order: OrderedDict[ExpertKey, None] = OrderedDict()

    def insert(self, key: ExpertKey) -> None:
        self._order[key] = None

    def touch(self, key: ExpertKey) -> None:
        self._order.move_to_end(key)

    def remove(self, key: ExpertKey) -> None:
        del self._order[key]

    def victim(self, is_evictable: Callable[[ExpertKey], bool]) -> ExpertKey | None:
        return next((key for key in self._order if is_evictable(key)), None)
