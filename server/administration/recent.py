"""Keeps values that take a while to compute for a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
RECENT_SECONDS = 1.0


class Recent(Generic[T]):
    """A value no older than a second; any thread may ask."""

    def __init__(self, find: Callable[[], T]):
        self._find = find
        self._found: tuple[T, float] | None = None  # the value, and until when it is given
        self._lock = threading.Lock()  # guards ``_found``

    def __call__(self) -> T:
        with self._lock:
            if self._found is None or time.monotonic() >= self._found[1]:
                self._found = self._find(), time.monotonic() + RECENT_SECONDS
            return self._found[0]
