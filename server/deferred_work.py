"""DeferredWork: work of a thread that can wait until other threads compute."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class DeferredWork:
    """Calls that wait for a moment when other threads compute and this one does not; for one thread."""

    def __init__(self) -> None:
        self._calls: deque[Callable[[], None]] = deque()

    def __bool__(self) -> bool:
        """True if there is any."""
        return bool(self._calls)

    def add(self, call: Callable[[], None]) -> None:
        self._calls.append(call)

    def run(self) -> None:
        """Run all of it, in order. A call that fails ends the run; those behind it stay."""
        while self._calls:
            self._calls.popleft()()
