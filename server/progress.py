"""Progress of long operations: a bar on a terminal, otherwise a log line every few seconds."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakSet

from tqdm import tqdm

from server.byte_sizes import format_bytes

LINE_SECONDS = 5.0  # between two log lines
POLL_SECONDS = 0.5  # between two calls of a function that returns the progress
DELAY_SECONDS = 0.5  # an operation that ends sooner shows no bar

log = logging.getLogger(__name__)
_shown: WeakSet[Progress] = WeakSet()


class Progress:
    """Number of bytes done, out of a total.

    Args:
        what: name of the operation, such as "loading the trunk".
        total: bytes of the operation.
    """

    def __init__(self, what: str, total: int):
        self._what, self._total, self._done = what, total, 0
        self._bar = (
            tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, desc=what, leave=False, delay=DELAY_SECONDS)
            if sys.stderr.isatty()
            else None
        )
        self._last_line = time.monotonic()
        _shown.add(self)

    def advance(self, nbytes: int) -> None:
        """Add bytes that are done."""
        self._done += nbytes
        if self._bar is not None:
            self._bar.update(nbytes)
        elif time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            share = self._done / self._total if self._total else 1.0
            log.info("%s: %s of %s (%.0f%%)", self._what, *map(format_bytes, (self._done, self._total)), 100 * share)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def clear() -> None:
    """Remove all bars from the terminal, before the process ends during an operation."""
    for shown in list(_shown):
        shown.close()


@contextmanager
def progress(what: str, total: int) -> Iterator[Progress]:
    """Show the progress of an operation during the context."""
    shown = Progress(what, total)
    try:
        yield shown
    finally:
        shown.close()


@contextmanager
def polled_progress(what: str, total: int, done: Callable[[], int]) -> Iterator[None]:
    """Show the progress of an operation during the context, polling ``done`` for its bytes."""
    is_over = threading.Event()

    def poll(shown: Progress) -> None:
        seen = 0
        while not is_over.wait(POLL_SECONDS):
            now = min(total, done())
            shown.advance(now - seen)
            seen = now

    with progress(what, total) as shown:
        thread = threading.Thread(target=poll, args=(shown,), name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()
