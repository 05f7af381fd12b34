"""What a replacement policy has to answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from expert_store.catalog import ExpertKey


class Policy(Protocol):
    """Bookkeeping of resident keys, without torch and without locks: the store's lock guards it."""

    def insert(self, key: ExpertKey) -> None:
        """A key became resident."""

    def touch(self, key: ExpertKey) -> None:
        """A resident key was asked for."""

    def remove(self, key: ExpertKey) -> None:
        """A key is no longer resident."""

    def victim(self, is_evictable: Callable[[ExpertKey], bool]) -> ExpertKey | None:
        """The resident key to give up first among the evictable; None if none is."""
