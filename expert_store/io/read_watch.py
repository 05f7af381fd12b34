"""A watch over reads that do not return, and over sources that change while they are open."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from expert_store.sources.base import Source
from expert_store.sources.open_sources import OpenSources

READ_SECONDS = 30.0  # a read that takes longer is stuck; a slow disk takes a tenth of a second
WATCH_SECONDS = 1.0  # between two looks

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Running:
    """A read in one thread."""

    read: Hashable
    started: float


class ReadWatch:
    """Knows the running reads, and looks at them and at the sources every second, in a thread of its own.

    A read that never returns can't be stopped, as its thread sleeps in the kernel; it can only be reported.

    Args:
        num_readers: threads that read.
        open_sources: returns the sources that are open.
    """

    def __init__(self, num_readers: int, open_sources: Callable[[], Iterable[OpenSources]]):
        self._num_readers, self._open_sources = num_readers, open_sources
        self._running: dict[_Running, None] = {}  # one for each thread that reads
        self._told: set[_Running] = set()  # of them, stuck ones that are in the log
        self._lock = threading.Lock()  # guards both
        self._is_over = threading.Event()
        self.changed: frozenset[Source] = frozenset()  # open ones that were written to since they were opened
        self._thread = threading.Thread(target=self._work, name="read-watch", daemon=True)
        self._thread.start()

    @contextmanager
    def running(self, read: Hashable) -> Iterator[None]:
        """Watch a read, or a part of it, of the calling thread during the context."""
        running = _Running(read, time.monotonic())
        with self._lock:
            self._running[running] = None
        try:
            yield
        finally:
            with self._lock:
                del self._running[running]
                is_told = running in self._told
                self._told.discard(running)
            if is_told:
                log.warning("the read of %s has ended after %.0f seconds", read, time.monotonic() - running.started)

    @property
    def has_stuck_read(self) -> bool:
        """True while a read does not return."""
        return bool(self._stuck())

    def is_stuck(self, read: Hashable) -> bool:
        """Return True if a read does not return, or can't begin because no thread's read does."""
        stuck = self._stuck()
        with self._lock:
            is_running = any(each.read == read for each in self._running)
        return any(each.read == read for each in stuck) if is_running else len(stuck) >= self._num_readers

    def close(self) -> None:
        self._is_over.set()
        self._thread.join()

    def _stuck(self) -> set[_Running]:
        oldest = time.monotonic() - READ_SECONDS
        with self._lock:
            return {running for running in self._running if running.started < oldest}

    def _work(self) -> None:
        while not self._is_over.wait(WATCH_SECONDS):
            self._look_at_sources()
            for running in self._stuck():
                with self._lock:
                    is_new = running in self._running and running not in self._told
                    self._told.add(running)
                if is_new:
                    log.error("the read of %s has not ended in %.0f seconds", running.read, READ_SECONDS)

    def _look_at_sources(self) -> None:
        changed = frozenset[Source]().union(*(sources.changed() for sources in self._open_sources()))
        for name in sorted(source.name for source in changed - self.changed):
            log.error("%s was written to while it is served; restart the server with a complete file", name)
        self.changed = changed
