"""Gives freed memory back to the system, which glibc's allocator keeps for later."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from functools import cache

DELAY_SECONDS = 1.0


class HeapTrimmer:
    """Trims the heap a moment after it is asked to, once for all who ask until then. Safe to use from several threads.

    Args:
        trim: gives back what it can; by default glibc's ``malloc_trim``, and nothing where there is none.
    """

    def __init__(self, trim: Callable[[], object] | None = None, delay_seconds: float = DELAY_SECONDS):
        self._trim, self._delay_seconds = trim or _find_trim(), delay_seconds
        self._lock = threading.Lock()  # guards what follows
        self._is_due = False

    def soon(self) -> None:
        """Trim once what a large request took is free."""
        with self._lock:
            if self._is_due:
                return
            timer = threading.Timer(self._delay_seconds, self._run)
            timer.daemon = True
            timer.start()
            self._is_due = True

    def _run(self) -> None:
        with self._lock:
            self._is_due = False
        self._trim()


def _find_trim() -> Callable[[], object]:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return (lambda: None) if trim is None else (lambda: trim(0))


@cache
def shared_trimmer() -> HeapTrimmer:
    """The one of this process."""
    return HeapTrimmer()
