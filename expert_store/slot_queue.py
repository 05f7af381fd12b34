"""SlotQueue: leases that found every slot in use."""

from __future__ import annotations


class SlotQueue:
    """The places of leases that need slots: first come, first served. The store's lock guards it.

    A lease keeps its place while it computes with what it has, but only one whose thread waits holds others up.
    """

    def __init__(self) -> None:
        self._is_waiting: dict[object, bool] = {}  # by lease, in their order

    def is_turn(self, lease: object) -> bool:
        """Return True if a lease may take a slot now; one without a place goes behind all who wait."""
        for other, is_waiting in self._is_waiting.items():
            if other is lease:
                return True
            if is_waiting:
                return False
        return True

    def join(self, lease: object) -> None:
        """Give a lease a place, unless it has one."""
        self._is_waiting.setdefault(lease, False)

    def leave(self, lease: object) -> None:
        """Take a lease out, if it has a place."""
        self._is_waiting.pop(lease, None)

    def begin_wait(self, lease: object) -> None:
        """Note that the thread of a lease begins to wait."""
        if lease in self._is_waiting:
            self._is_waiting[lease] = True

    def end_wait(self, lease: object) -> None:
        """Note that the thread of a lease waits no longer."""
        if lease in self._is_waiting:
            self._is_waiting[lease] = False

    @property
    def has_waiters(self) -> bool:
        """True while the thread of a lease waits for a slot."""
        return any(self._is_waiting.values())
