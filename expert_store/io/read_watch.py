"""A watch over reads that do not return, and over sources that change while they are open."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager

from expert_store.sources.base import Source
from expert_store.sources.open_sources import OpenSources

READ_SECONDS = 30.0  # a read that takes longer is stuck; a slow disk takes a tenth of a second
WATCH_SECONDS = 1.0  # between two looks

log = logging.getLogger(__name__)


class ReadWatch:
    """Knows the running reads, and looks at them and at the sources every second, in a thread of its own.

    A read that never returns can't be stopped, as its thread sleeps in the kernel; it can only be reported.

    Args:
        num_readers: threads that read.
        open_sources: returns the sources that are open.
    """

    def __init__(self, num_readers: int, open_sources: Callable[[], Iterable[OpenSources]]):
        self._num_readers, self._open_sources = num_readers, open_sources
        self._running: dict[Hashable, float] = {}  # reads, and when each began
        self._told: set[Hashable] = set()  # stuck reads that are in the log
        self._lock = threading.Lock()  # guards both
        self._is_over = threading.Event()
        self.changed: frozenset[Source] = frozenset()  # open ones that were written to since they were opened
        self._thread = threading.Thread(target=self._work, name="read-watch", daemon=True)
        self._thread.start()

    @contextmanager
    def running(self, read: Hashable) -> Iterator[None]:
        """Watch a read during the context."""
        with self._lock:
            self._running[read] = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                started = self._running.pop(read)
                is_told = read in self._told
                self._told.discard(read)
            if is_told:
                log.warning("the read of %s has ended after %.0f seconds", read, time.monotonic() - started)

    @property
    def has_stuck_read(self) -> bool:
        """True while a read does not return."""
        return bool(self._stuck())

    def is_stuck(self, read: Hashable) -> bool:
        """Return True if a read does not return, or can't begin because no thread's read does."""
        stuck = self._stuck()
        with self._lock:
            is_running = read in self._running
        return read in stuck if is_running else len(stuck) >= self._num_readers

    def close(self) -> None:
        self._is_over.set()
        self._thread.join()

    def _stuck(self) -> set[Hashable]:
        oldest = time.monotonic() - READ_SECONDS
        with self._lock:
            return {read for read, started in self._running.items() if started < oldest}

    def _work(self) -> None:
        while not self._is_over.wait(WATCH_SECONDS):
            self._look_at_sources()
            for read in self._stuck():
                with self._lock:
                    is_new = read in self._running and read not in self._told
                    self._told.add(read)
                if is_new:
                    log.error("the read of %s has not ended in %.0f seconds", read, READ_SECONDS)

    def _look_at_sources(self) -> None:
        changed = frozenset[Source]().union(*(sources.changed() for sources in self._open_sources()))
        for name in sorted(source.name for source in changed - self.changed):
            log.error("%s was written to while it is served; restart the server with a complete file", name)
        self.changed = changed
