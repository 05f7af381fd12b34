"""Preloader: reads all experts after the start, if all of them fit."""

from __future__ import annotations

import sys
import threading

from expert_store.errors import StoreClosedError
from expert_store.store import ExpertStore

ROUND_SECONDS = 0.5  # between checks whether to stop


class Preloader:
    """A thread that prefetches every expert while nothing else is read, and ends when all are resident.

    It does nothing if the fastest tier has fewer slots than there are experts, as they would evict each other. It also
    ends when all experts that are left can't be read.
    """

    def __init__(self, store: ExpertStore):
        self._store = store
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="preloader", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; reads that have begun continue."""
        self._is_stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def join(self, timeout_seconds: float) -> bool:
        """Wait until the thread has ended or the time is over; return True if it has ended."""
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
                store.preload(absent, ROUND_SECONDS)
        except StoreClosedError:
            return
