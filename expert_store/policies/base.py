"""Interface of replacement policies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

from expert_store.keys import ExpertKey


class Policy(Protocol):
    """Bookkeeping of resident keys, without torch and without locks: the store's lock guards it.

    Every method takes constant time, whatever the number of slots.
    """

    def insert(self, key: ExpertKey) -> None:
        """Add a key that became resident."""

    def touch(self, key: ExpertKey) -> None:
        """Count a use of a resident key."""

    def touch_all(self, keys: Sequence[ExpertKey]) -> None:
        """Count a use of resident keys of one layer, in this order; takes constant time for each."""

    def remove(self, key: ExpertKey) -> None:
        """Remove a key that is no longer resident or was pinned; a policy may remember its uses."""

    def victim(self, incoming: ExpertKey, is_evictable: Callable[[ExpertKey], bool]) -> ExpertKey | None:
        """Return the evictable key to evict first when ``incoming`` needs a slot; None if none is evictable."""

    def resize(self, num_slots: int) -> None:
        """Change the number of slots; resident keys stay until they are removed."""


class TouchesEach(ABC):
    """``touch_all`` for policies that gain nothing from several keys at once."""

    @abstractmethod
    def touch(self, key: ExpertKey) -> None:
        """Count a use of a resident key."""

    def touch_all(self, keys: Sequence[ExpertKey]) -> None:
        for key in keys:
            self.touch(key)


PolicyFactory = Callable[[int], Policy]  # called with the number of slots
