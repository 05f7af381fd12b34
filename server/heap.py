"""Returns freed memory to the system; glibc's allocator would keep it for later."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from functools import cache

DELAY_SECONDS = 1.0


class HeapTrimmer:
    """Trims the heap a moment after a call, once for all calls until then. Thread-safe.

    Args:
        trim: the function that trims.
    """

    def __init__(self, trim: Callable[[], object] | None = None, delay_seconds: float = DELAY_SECONDS):
        self._trim, self._delay_seconds = trim or trim_heap, delay_seconds
        self._lock = threading.Lock()  # guards _is_due
        self._is_due = False
        self.num_trims = 0

    def soon(self) -> None:
        """Schedule a trim, so that memory of a large request is free by then."""
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
        self.now()

    def now(self) -> None:
        """Trim the heap in this thread, which may take some milliseconds."""
        self._trim()
        self.num_trims += 1


def trim_heap() -> None:
    """Return the heap's free memory to the system, where glibc can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@cache
def shared_trimmer() -> HeapTrimmer:
    """Return the trimmer of this process."""
    return HeapTrimmer()
