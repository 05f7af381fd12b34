"""DelayedWriter: stores bytes in a cache after those who read them went on."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from expert_store.disk_cache.cache_file import CacheFile
from expert_store.sources.base import Bytes

log = logging.getLogger(__name__)

MAX_UNWRITTEN_BYTES = 64 << 20  # of copies; who reads more stores them itself

Store = Callable[[CacheFile, int, Bytes], bool]


class DelayedWriter:
    """A thread that stores copies of bytes, which begins with the first ones. Thread-safe.

    Until bytes are stored, the file gives them from memory. A process that is killed has not stored them.

    Args:
        store: keeps some bytes of a file; a failure of the disk is no exception.
    """

    def __init__(self, store: Store):
        self._store = store
        self._waiting: deque[tuple[CacheFile, int, Bytes]] = deque()
        self._num_bytes = 0  # of those that wait or are being stored
        self._changed = threading.Condition()  # guards the fields above
        self._thread: threading.Thread | None = None

    def put(self, file: CacheFile, begin: int, data: Bytes) -> None:
        """Have a copy of some bytes stored soon, or store them now if there are too many copies."""
        with self._changed:
            has_room = self._num_bytes + len(data) <= MAX_UNWRITTEN_BYTES
            if has_room:
                self._num_bytes += len(data)
        if not has_room:
            self._store(file, begin, data)
            return
        copy = data.copy()
        file.put_off(begin, copy)
        with self._changed:
            self._waiting.append((file, begin, copy))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="cache-writer", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all is stored."""
        with self._changed:
            while self._num_bytes:
                self._changed.wait()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                file, begin, data = self._waiting.popleft()
            try:
                self._store(file, begin, data)
            except Exception:  # who waits for all to be stored must not wait for ever
                log.exception("bytes could not be stored in %s", file.path)
            file.settle(begin)
            with self._changed:
                self._num_bytes -= len(data)
                self._changed.notify_all()
