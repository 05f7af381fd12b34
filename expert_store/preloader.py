"""Preloader: reads all experts after the start, where all of them fit."""

from __future__ import annotations

import sys
import threading

from .errors import StoreClosedError
from .store import ExpertStore

ROUND_SECONDS = 0.5  # after which it looks whether it is to stop


class Preloader:
    """A thread that prefetches every expert while nothing else is read, and ends when all are there.

    Does nothing if the fastest tier has fewer slots than there are experts: what was read would be evicted again. Ends,
    too, when all that is left can't be read.
    """

    def __init__(self, store: ExpertStore):
        self._store = store
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="preloader", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; reads that have begun go on."""
        self._is_stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def join(self, timeout_seconds: float) -> bool:
        """Wait until the thread has ended, but no longer than that; whether it has."""
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        store, num_left, num_failures = self._store, sys.maxsize, 0
        try:
            while not self._is_stopping.is_set() and store.holds_all and (absent := store.absent()):
                failures = store.statistics().load_failures
                if len(absent) >= num_left and failures > num_failures:
                    return
                num_left, num_failures = len(absent), failures
                store.fetch(absent, ROUND_SECONDS)
        except StoreClosedError:
            return
