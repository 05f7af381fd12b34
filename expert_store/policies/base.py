"""What a replacement policy has to answer."""

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
        """A key became resident."""

    def touch(self, key: ExpertKey) -> None:
        """A resident key was asked for."""

    def touch_all(self, keys: Sequence[ExpertKey]) -> None:
        """Resident keys of one layer were asked for, in this order; takes constant time for each."""

    def remove(self, key: ExpertKey) -> None:
        """A key is no longer resident, or no longer to be evicted; a policy may remember that it was."""

    def victim(self, incoming: ExpertKey, is_evictable: Callable[[ExpertKey], bool]) -> ExpertKey | None:
        """The resident key to give up first among the evictable, for one that comes; None if none is."""

    def resize(self, num_slots: int) -> None:
        """The number of slots changed; what is resident stays until it is removed."""


class TouchesEach(ABC):
    """``touch_all`` for policies that gain nothing by being told at once."""

    @abstractmethod
    def touch(self, key: ExpertKey) -> None:
        """A resident key was asked for."""

    def touch_all(self, keys: Sequence[ExpertKey]) -> None:
        for key in keys:
            self.touch(key)


PolicyFactory = Callable[[int], Policy]  # from the number of slots
