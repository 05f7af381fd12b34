"""SlotNumbers: which slots of a tier are free, and which are retired because the tier became smaller."""

from __future__ import annotations

from collections.abc import Callable, Iterator


def no_op(slot: int) -> None:
    """Do nothing when a slot is retired or revived."""
    del slot


class SlotNumbers:
    """Numbers of slots, each of which is free, retired or taken. Torch-free; the store's lock guards it.

    Args:
        num_slots: slots in use.
        on_retire: called with each slot that goes out of use.
        on_revive: called with each slot that ``resize`` puts into use.
    """

    def __init__(self, num_slots: int, on_retire: Callable[[int], None], on_revive: Callable[[int], None]):
        self.num_slots = num_slots  # the size asked for; `excess` counts the slots beyond it that are still taken
        self._on_retire, self._on_revive = on_retire, on_revive
        self._free = list(range(num_slots))[::-1]
        self._retired: list[int] = []
        self._num_made = num_slots  # slots ever in use

    @property
    def are_all_taken(self) -> bool:
        return not self._free

    @property
    def excess(self) -> int:
        """Slots in use beyond ``num_slots``; more than zero only while a smaller size waits for leases to end."""
        return self._num_made - len(self._retired) - self.num_slots

    def take(self) -> int:
        """Return a free slot, which is taken now."""
        return self._free.pop()

    def free(self, slot: int) -> None:
        """Free a slot that is taken."""
        self._free.append(slot)

    def resize(self, num_slots: int) -> None:
        """Set the size, and put slots into use if it is larger; ``retire`` takes them out."""
        self.num_slots = num_slots
        while self.excess < 0:
            slot = self._retired.pop() if self._retired else self._num_made
            self._num_made = max(self._num_made, slot + 1)
            self._free.append(slot)
            self._on_revive(slot)

    def retire(self) -> None:
        """Take a free slot out of use."""
        slot = self._free.pop()
        self._retired.append(slot)
        self._on_retire(slot)

    def check_integrity(self, taken: Iterator[int]) -> None:
        """Raise AssertionError unless every slot is free, retired or taken once."""
        slots = sorted([*self._free, *self._retired, *taken])
        if slots != list(range(self._num_made)):
            raise AssertionError(f"slots are lost or used twice: {slots}")
        if self.excess < 0:
            raise AssertionError(f"{-self.excess} slots are missing")
