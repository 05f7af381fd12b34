"""Preloader: reads all experts after the start, and after more have come, if all of them fit."""

from __future__ import annotations

import sys
import threading

from expert_store.errors import StoreClosedError
from expert_store.store import ExpertStore

ROUND_SECONDS = 0.5  # between checks whether to stop


class Preloader:
    """A thread that reads every expert while nothing else is read, until all are resident.

    It does so after its start and each time that the store gets more slots or a variant. It does nothing if the
    fastest tier has fewer slots than there are experts, as they would evict each other. It leaves experts that can't
    be read.
    """

    def __init__(self, store: ExpertStore):
        self._store = store
        self._changed = threading.Condition()  # guards the fields below
        self._num_wanted, self._num_done = 1, 0  # rounds of reading
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="preloader", daemon=True)

    def start(self) -> None:
        self._store.on_growth = self._wake
        self._thread.start()

    def stop(self) -> None:
        """End the thread; reads that have begun continue."""
        self._end()
        if self._thread.is_alive():
            self._thread.join()

    def wait_until_done(self, timeout_seconds: float) -> bool:
        """Wait until all experts that can be read are read, or loading; return False if the time is over before."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._is_stopping or self._num_done == self._num_wanted, timeout_seconds
            )

    def _wake(self) -> None:
        with self._changed:
            self._num_wanted += 1
            self._changed.notify_all()

    def _end(self) -> None:
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            while not self._is_stopping:
                wanted = self._num_wanted
                self._read_absent()
                with self._changed:
                    self._num_done = wanted
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._is_stopping or self._num_wanted > self._num_done)
        except StoreClosedError:
            self._end()

    def _read_absent(self) -> None:
        store, num_left, num_failures = self._store, sys.maxsize, 0
        while not self._is_stopping and store.holds_all and (absent := store.absent()):
            failures = store.statistics().load_failures
            if len(absent) >= num_left and failures > num_failures:
                return
            num_left, num_failures = len(absent), failures
            store.preload(absent, ROUND_SECONDS)
