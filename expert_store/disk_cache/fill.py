"""Fill: reads what a cache lacks of some sources while nothing demands the link."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from expert_store.disk_cache.cached_source import CachedSource, OpenCachedSource, is_versioned
from expert_store.disk_cache.disk_cache import NO_ROOM
from expert_store.disk_cache.extent_log import EXTENT_BYTES
from expert_store.disk_cache.private_files import open_private
from expert_store.errors import CheckpointError
from expert_store.sources.base import Piece

log = logging.getLogger(__name__)

NUM_THREADS = 3
MIN_CHUNK_BYTES, MAX_CHUNK_BYTES = 32 << 10, 1 << 20  # of one request
CHUNK_BYTES_PER_QUIET_SECOND = 64 << 10  # the longer nobody has waited for the link, the less likely somebody does soon
PAUSE_SECONDS = 0.01  # while other threads read the last bytes
RETRY_SECONDS = 10.0  # after the source or the disk failed
ORDER_BYTES = 64 << 20  # read before the order is asked for again
TELL_SECONDS = 10.0  # between two reports of the progress
LOCK = "fill.lock"
RATE_SECONDS = 60.0  # over which the time that is left is estimated

Span = tuple[CachedSource, int, int]  # begin and end of some bytes


class FillProgress(NamedTuple):
    """Progress of a fill."""

    held_bytes: int
    total_bytes: int
    seconds_left: float | None  # None if nothing is known, or while it waits
    state: str  # filling, waiting, complete
    reason: str | None = None  # why it waits


class Fill:
    """Threads that complete some sources in a cache, small chunk by small chunk.

    A chunk begins only while no read that somebody waits for uses the link, or has used it just now. If the source or
    the disk fails, they try again later.

    Args:
        sources: to be completed, which have been opened.
        order: returns the spans that are wanted first, or all of them.
        has_all: whether ``order`` returns all, cut in the way in which they are to be read.
        min_chunk_bytes: of one request; by default what a link moves soon.
        name: what it does, for the log.
        on_complete: called once when the sources are complete.
        tell: called with the progress at the start, and then now and then.
    """

    def __init__(
        self,
        sources: Sequence[CachedSource],
        order: Callable[[], Iterable[Span]] = tuple,
        on_complete: Callable[[Fill], None] = lambda _: None,
        tell: Callable[[FillProgress], None] = lambda _: None,
        *,
        has_all: bool = False,
        min_chunk_bytes: int | None = None,
        name: str = "the download",
    ):
        self._has_all, self._min_chunk_bytes, self._name = has_all, min_chunk_bytes or MIN_CHUNK_BYTES, name
        self.sources, self._order, self._on_complete, self._tell = sources, order, on_complete, tell
        self._cache = sources[0].cache
        self._stop, self._lock = threading.Event(), threading.Lock()  # guards the fields below
        self._opened = {source: source.opened for source in sources}
        self._spans: Iterator[tuple[OpenCachedSource, int, int]] = iter(())
        self._reading: set[tuple[OpenCachedSource, int]] = set()  # begins of spans that a thread reads
        self._lead = -1  # the file whose lock lets one process of those that share the cache fill it
        self._is_complete = False
        self._waits_for: str | None = None  # why the last attempt failed
        self._tell_at = 0.0
        self._told: FillProgress | None = None
        self._marks: list[tuple[float, int]] = []  # times, and bytes held then
        self._threads = [
            threading.Thread(target=self._run, name=f"fill-{index}", daemon=True) for index in range(NUM_THREADS)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads after their chunks."""
        self._stop.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        with self._lock:
            if self._lead >= 0:
                os.close(self._lead)  # another process may fill the cache
                self._lead = -1

    def progress(self) -> FillProgress:
        """Return how far it has come."""
        with self._lock:
            opened, is_complete, reason = list(self._opened.values()), self._is_complete, self._waits_for
            total = sum(each.identity.nbytes for each in opened)
            held = sum(each.file.log.num_bytes for each in opened if each.file is not None)
            now = time.monotonic()
            self._marks = [mark for mark in self._marks if mark[0] > now - RATE_SECONDS] or self._marks[-1:]
            self._marks.append((now, held))
            (since, before), elapsed = self._marks[0], now - self._marks[0][0]
        if is_complete:
            return FillProgress(held, total, 0.0, "complete")
        reason = reason or self._cache.lack(total - held)
        if reason is not None:
            return FillProgress(held, total, None, "waiting", reason)
        seconds = (total - held) * elapsed / (held - before) if held > before and since < now else None
        return FillProgress(held, total, seconds, "filling")

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                if not self._leads():
                    self._waits_for = "another server completes it"
                    for opened in self._opened.values():
                        if opened.file is not None:
                            opened.file.log.refresh()
                    self._stop.wait(RETRY_SECONDS)
                    continue
                self._tell_now_and_then()
                span = self._next()
                if span is None and self._is_complete:
                    return
                if span is None:  # another thread reads the last ones
                    self._stop.wait(PAUSE_SECONDS)
                    continue
                try:
                    is_kept = self._read(*span)
                finally:
                    with self._lock:
                        self._reading.remove(span[:2])
                if is_kept:
                    self._waits_for = None
                    continue
                reason = self._cache.lack(span[2] - span[1]) or NO_ROOM
            except (CheckpointError, OSError) as error:
                reason = str(error)
            was_waiting, self._waits_for = self._waits_for is not None, reason
            if not was_waiting:
                log.warning("%s waits: %s", self._name, reason)
            self._stop.wait(RETRY_SECONDS)

    def _tell_now_and_then(self) -> None:
        with self._lock:
            if time.monotonic() < self._tell_at:
                return
            self._tell_at = time.monotonic() + TELL_SECONDS
        progress = self.progress()
        if progress.state == "filling" or progress != self._told:  # what waits does not change
            self._tell(progress)
        self._told = progress

    def _leads(self) -> bool:
        """Return True if no other process fills the cache."""
        with self._lock:
            if self._lead < 0:
                self._lead = open_private(self._cache.folder / LOCK)
            try:
                fcntl.flock(self._lead, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    def _next(self) -> tuple[OpenCachedSource, int, int] | None:
        """Return bytes to read next; None if none are left, or other threads read the last ones."""
        with self._lock:
            if self._is_complete:
                return None
            span = next(self._spans, None)
            if span is None:
                self._spans = self._missing()
                span = next(self._spans, None)
            if span is not None:
                self._reading.add(span[:2])
                return span
            self._is_complete = not self._reading and all(map(_is_complete, self._opened.values()))
            if not self._is_complete:
                return None
        self._on_complete(self)
        return None

    def _missing(self) -> Iterator[tuple[OpenCachedSource, int, int]]:
        """Yield spans that the cache lacks, the wanted ones first, up to some bytes."""
        ordered = list(self._order())
        if not self._has_all:
            ordered += [(source, 0, opened.identity.nbytes) for source, opened in self._opened.items()]
        left, refreshed = ORDER_BYTES, set[CachedSource]()
        for source, begin, end in ordered:
            opened = self._opened.get(source)
            if opened is None:
                continue
            if opened.file is None:
                reason = "the disk failed" if is_versioned(opened.identity) else "its server tells no version of it"
                raise CheckpointError(f"{source.name} can't be kept on the disk: {reason}")
            if source not in refreshed:
                opened.file.log.refresh()
                refreshed.add(source)
            for first, last in opened.missing(begin, end):
                for position in range(first, last, EXTENT_BYTES):
                    if left <= 0:
                        return
                    if (opened, position) not in self._reading:
                        left -= EXTENT_BYTES
                        yield opened, position, min(last, position + EXTENT_BYTES)

    def _read(self, opened: OpenCachedSource, begin: int, end: int) -> bool:
        """Read a span chunk by chunk, and store it; return False if the disk does not take it."""
        if not self._cache.has_room(end - begin):
            return False
        memory, done = np.empty(end - begin, np.uint8), 0
        while done < len(memory):
            if not self._cache.gate.wait_until_quiet(self._stop):
                return opened.keep(begin, memory[:done])
            quiet = self._cache.gate.quiet_seconds
            nbytes = min(max(CHUNK_BYTES_PER_QUIET_SECOND * quiet, self._min_chunk_bytes), MAX_CHUNK_BYTES)
            chunk = memory[done : done + int(nbytes)]
            opened.inner.read([Piece(begin + done, chunk)])
            done += len(chunk)
        opened.inner.refuse_changed()
        return opened.keep(begin, memory)


def _is_complete(opened: OpenCachedSource) -> bool:
    """Return True if all is on the disk, and no longer about to be."""
    return opened.file is not None and not opened.file.log.missing(0, opened.identity.nbytes)
