"""Stalls of an event loop, measured from another thread.

A heartbeat runs on the loop. Between two beats the loop's thread computes, waits for a processor, or is blocked: by the
interpreter's lock, by a call that sleeps. Its wait for a processor, which the kernel counts, is the machine's doing;
all else is a stall.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

PERIOD_SECONDS = 0.002
LOOK_SECONDS = 0.01  # how often a thread looks where a loop is that does not come back


class StallWatch:
    """Finds the longest stall of a loop within the context, and where the loop was most of that time."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop = loop
        self._is_over = threading.Event()
        self._thread_id = 0
        self._last_beat = self._last_waited = 0.0
        self._seen: Counter[str] = Counter()  # where the loop was, if this beat is late
        self.seconds = 0.0
        self.place = ""

    def __enter__(self) -> Self:
        has_begun = threading.Event()
        self._loop.call_soon_threadsafe(self._begin, has_begun)
        has_begun.wait()
        self._looker = threading.Thread(target=self._look)
        self._looker.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        has_ended = threading.Event()
        self._loop.call_soon_threadsafe(self._end, has_ended)  # a stall up to now counts
        has_ended.wait()
        self._looker.join()

    def _begin(self, has_begun: threading.Event) -> None:
        self._thread_id = threading.get_ident()
        self._last_beat, self._last_waited = time.perf_counter(), waited_seconds()
        has_begun.set()
        self._loop.call_later(PERIOD_SECONDS, self._beat)

    def _beat(self) -> None:
        if self._is_over.is_set():
            return
        self._take()
        self._loop.call_later(PERIOD_SECONDS, self._beat)

    def _end(self, has_ended: threading.Event) -> None:
        self._take()
        self._is_over.set()
        has_ended.set()

    def _take(self) -> None:
        now, waited = time.perf_counter(), waited_seconds()
        stalled = now - self._last_beat - PERIOD_SECONDS - (waited - self._last_waited)
        if stalled > self.seconds:
            self.seconds, self.place = stalled, max(self._seen, key=self._seen.__getitem__, default="")
        self._last_beat, self._last_waited, self._seen = now, waited, Counter()

    def _look(self) -> None:
        while not self._is_over.wait(LOOK_SECONDS):
            if time.perf_counter() - self._last_beat > 2 * LOOK_SECONDS:
                self._seen["".join(traceback.format_stack(sys._current_frames()[self._thread_id]))] += 1


def waited_seconds() -> float:
    """Return how long this thread was ready to run but had no processor; 0 if the kernel does not count it."""
    path = Path("/proc/thread-self/schedstat")
    return int(path.read_text().split()[1]) / 1e9 if path.exists() else 0.0
