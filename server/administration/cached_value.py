"""Cache of a value that is slow to compute."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
MAX_AGE_SECONDS = 1.0


class CachedValue(Generic[T]):
    """Returns a value that is at most ``MAX_AGE_SECONDS`` old. Thread-safe."""

    def __init__(self, find: Callable[[], T]):
        self._find = find
        self._found: tuple[T, float] | None = None  # the value, and the time at which it expires
        self._lock = threading.Lock()  # guards ``_found``

    def __call__(self) -> T:
        with self._lock:
            if self._found is None or time.monotonic() >= self._found[1]:
                self._found = self._find(), time.monotonic() + MAX_AGE_SECONDS
            return self._found[0]
