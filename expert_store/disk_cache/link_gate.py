"""LinkGate: lets bulk transfers use a link only while nothing demands it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

QUIET_SECONDS = 0.05  # without demand before a transfer begins: a token's next layers follow sooner


class LinkGate:
    """Counts the reads that somebody waits for. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_demands, self._last_demand = 0, float("-inf")

    @contextmanager
    def demand(self) -> Iterator[None]:
        """Keep other transfers from beginning."""
        with self._changed:
            self._num_demands += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_demands -= 1
                self._last_demand = time.monotonic()
                self._changed.notify_all()

    @property
    def quiet_seconds(self) -> float:
        """Seconds since somebody waited for the link; infinite if nobody ever did."""
        return time.monotonic() - self._last_demand

    def wait_until_quiet(self, stop: threading.Event) -> bool:
        """Wait until nothing demands the link; return False if ``stop`` is set before."""
        with self._changed:
            while not stop.is_set():
                left = self._last_demand + QUIET_SECONDS - time.monotonic()
                if not self._num_demands and left <= 0:
                    return True
                self._changed.wait(QUIET_SECONDS if self._num_demands else left)
        return False
