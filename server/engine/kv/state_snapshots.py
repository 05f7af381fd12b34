"""Snapshots of recurrent states after a prefix. Torch-free.

Sequences with a common prefix can share blocks of keys and values, because these never change. A recurrent state
changes with every token, so a copy is kept where a step ends with a full block, and a sequence can continue from there.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable


class SnapshotPool:
    """Slots for copies of states, each identified by the hash of all tokens before it. Evicts least recently used.

    Args:
        slots: slots of the model's states that no running sequence uses.
    """

    def __init__(self, slots: Iterable[int]):
        self._free = list(slots)[::-1]
        self._num_slots = len(self._free)
        self._kept: OrderedDict[bytes, int] = OrderedDict()  # by hash, least recently used first
        self._readers: Counter[int] = Counter()  # sequences that continue from a slot in their next step

    def has(self, content: bytes) -> bool:
        return content in self._kept

    def resume(self, content: bytes) -> int:
        """Return the slot of a snapshot that a sequence is about to continue from; it stays until ``done``."""
        self._kept.move_to_end(content)
        slot = self._kept[content]
        self._readers[slot] += 1
        return slot

    def done(self, slot: int) -> None:
        """End a ``resume``: the sequence has continued from the slot, or will not."""
        self._readers[slot] -= 1

    def take(self) -> int | None:
        """Return a slot for a new snapshot; None if all are about to be read."""
        if self._free:
            return self._free.pop()
        unread = next((content for content, slot in self._kept.items() if not self._readers[slot]), None)
        return None if unread is None else self._kept.pop(unread)

    def give_back(self, slot: int) -> None:
        """Return a taken slot to which nothing was written."""
        self._free.append(slot)

    def keep(self, content: bytes, slot: int) -> None:
        """Make the snapshot in a taken slot findable."""
        if content in self._kept:
            self.give_back(slot)
        else:
            self._kept[content] = slot

    def drop(self, content: bytes) -> None:
        """Forget a snapshot that a later one of the same sequence replaces, unless it is about to be read."""
        slot = self._kept.get(content)
        if slot is not None and not self._readers[slot]:
            self.give_back(self._kept.pop(content))

    def forget_all(self) -> None:
        """Forget all snapshots that are not about to be read."""
        for content in [*self._kept]:
            self.drop(content)

    def check_integrity(self, taken: Iterable[int], read: Iterable[int]) -> None:
        """Raise AssertionError unless these are the slots in use."""
        slots = [*self._free, *self._kept.values(), *taken]
        if len(set(slots)) != len(slots) or len(slots) != self._num_slots:
            raise AssertionError(f"{len(slots)} snapshot slots are accounted for, not {self._num_slots}")
        if +self._readers != Counter(read):
            raise AssertionError("snapshots are read by other sequences than these")
