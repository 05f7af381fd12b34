"""The one lock of an expert store."""

from __future__ import annotations

import threading

from expert_store.errors import StoreClosedError, StoreFailedError


class StoreLock(threading.Condition):
    """Guards all bookkeeping of a store; its condition is that something has changed.

    It is held for bookkeeping only, never while reading, copying or computing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_closed = False
        self.failure: str | None = None  # why nothing that is waited for may ever come
        self._num_waiting = 0

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until something changes or ``timeout`` seconds have passed; False after a timeout.

        Raises:
            StoreClosedError: the store was closed.
            StoreFailedError: a thread of the store has died.
        """
        self.refuse_closed()
        self._num_waiting += 1
        try:
            return super().wait(timeout)
        finally:
            self._num_waiting -= 1

    def refuse_closed(self) -> None:
        """Raise StoreClosedError or StoreFailedError if there is nothing to wait for any more."""
        if self.is_closed:
            raise StoreClosedError("the expert store was closed")
        if self.failure is not None:
            raise StoreFailedError(self.failure)

    def wake_waiters(self) -> None:
        """Wake all threads that wait, if there are any."""
        if self._num_waiting:
            self.notify_all()

    def close(self) -> None:
        """Wake all threads that wait; each later ``wait`` raises StoreClosedError."""
        with self:
            self.is_closed = True
            self.wake_waiters()

    def fail(self, reason: str) -> None:
        """Wake all threads that wait; each later ``wait`` raises StoreFailedError."""
        with self:
            self.failure = self.failure or reason
            self.wake_waiters()
