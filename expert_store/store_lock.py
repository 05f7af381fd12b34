"""The one lock of an expert store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from expert_store.errors import StoreClosedError, StoreFailedError

MOST_DEFERRED = 32  # steps


class StoreLock(threading.Condition):
    """Guards all bookkeeping of a store; its condition is that something has changed.

    It is held for bookkeeping only, never while reading, copying or computing.

    What a step has used may be counted later, many steps at once, since counting takes several times as long while its
    code and data are in no cache. Whoever enters the lock finds all of it counted; only ``acquire`` does without.
    """

    def __init__(self) -> None:
        super().__init__()
        self._deferred: list[Callable[[], None]] = []
        self.is_closed = False
        self.failure: str | None = None  # why nothing that is waited for may ever come
        self._num_waiting = 0

    def __enter__(self) -> bool:
        entered = super().__enter__()
        try:
            self.settle()
        except BaseException:
            self.release()
            raise
        return entered

    def defer(self, count: Callable[[], None]) -> None:
        """Count something later; the lock is held."""
        self._deferred.append(count)
        if len(self._deferred) >= MOST_DEFERRED:
            self.settle()

    def settle(self) -> None:
        """Count now what was deferred, in its order; the lock is held."""
        deferred, self._deferred = self._deferred, []
        for count in deferred:
            count()

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
            self.settle()

    @contextmanager
    def released(self) -> Iterator[None]:
        """Release the lock, which is held once, and take it again."""
        self.release()
        try:
            yield
        finally:
            self.acquire()
            self.settle()

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
