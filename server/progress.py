"""How far something large has come: a bar on a terminal, else a line of the log every few seconds."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakSet

from tqdm import tqdm

from server.memory.sizes import format_bytes

LINE_SECONDS = 5.0  # between two lines of the log
LOOK_SECONDS = 0.5  # between two looks at something that does not tell by itself
DELAY_SECONDS = 0.5  # what is done sooner needs no bar

log = logging.getLogger(__name__)
_shown: WeakSet[Progress] = WeakSet()


class Progress:
    """Bytes done of all.

    Args:
        what: is being done, as "loading the trunk".
        total: bytes.
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
        """So many more bytes are done."""
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
    """Take all bars off the terminal, before the process ends in the middle of something."""
    for shown in list(_shown):
        shown.close()


@contextmanager
def progress(what: str, total: int) -> Iterator[Progress]:
    """Show how something goes while the context lasts."""
    shown = Progress(what, total)
    try:
        yield shown
    finally:
        shown.close()


@contextmanager
def following(what: str, total: int, done: Callable[[], int]) -> Iterator[None]:
    """Show how something goes that has to be asked how many bytes it has done."""
    is_over = threading.Event()

    def look(shown: Progress) -> None:
        seen = 0
        while not is_over.wait(LOOK_SECONDS):
            now = min(total, done())
            shown.advance(now - seen)
            seen = now

    with progress(what, total) as shown:
        thread = threading.Thread(target=look, args=(shown,), name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()
