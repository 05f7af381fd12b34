"""ExtentLog: which bytes of a file are in a cache, with their checksums, as a log that processes share."""

from __future__ import annotations

import fcntl
import os
import struct
import threading
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import xxhash

RECORD = struct.Struct("<QQQQ")  # offset, bytes, checksum of the bytes (0 bytes: the extent was dropped), of the record
MAX_UNUSED_BYTES = 1 << 20  # of records that count no more, before the log is written anew
READ_BYTES = 8 << 20


class CachedExtent(NamedTuple):
    """Bytes that are in the cache."""

    begin: int
    end: int
    checksum: int


class ExtentLog:
    """The extents of one file, which never overlap. Thread-safe, and shared with other processes.

    A record is appended when its bytes are written, by one process at a time. A process that is killed leaves at most
    a part of a record, which the next one cuts off. After a failure of the machine there may be records whose bytes
    were not written; their checksums tell.

    Raises:
        OSError: the log can't be opened or read.
    """

    def __init__(self, path: Path):
        self._path = path
        self._lock = threading.RLock()  # guards the fields below; the file's lock guards against other processes
        self._file = -1
        self._forget()
        self.refresh()

    @property
    def num_bytes(self) -> int:
        """Bytes that are in the cache."""
        return self._num_bytes

    def refresh(self) -> None:
        """Read what other processes have appended."""
        with self._lock:
            if self._file < 0 or not self._is_current():
                self._open()
            while len(found := os.pread(self._file, READ_BYTES, self._position)) >= RECORD.size:
                for position in range(0, len(found) - RECORD.size + 1, RECORD.size):
                    self._apply(found[position : position + RECORD.size])
                    self._position += RECORD.size

    def find(self, begin: int, end: int) -> list[CachedExtent]:
        """Return the extents that have bytes of a range, in order."""
        with self._lock:
            first = max(0, bisect_right(self._begins, begin) - 1)
            last = bisect_left(self._begins, end)
            found = [self._extents[each] for each in self._begins[first:last]]
        return [extent for extent in found if extent.end > begin]

    def missing(self, begin: int, end: int) -> list[tuple[int, int]]:
        """Return the parts of a range that are not in the cache."""
        missing, position = [], begin
        for extent in self.find(begin, end):
            if extent.begin > position:
                missing.append((position, extent.begin))
            position = max(position, extent.end)
        if position < end:
            missing.append((position, end))
        return missing

    def add(self, begin: int, data: memoryview) -> None:
        """Record bytes that are written, unless some of them are in the cache by now.

        Raises:
            OSError: the disk is full, or fails.
        """
        checksum = xxhash.xxh3_64_intdigest(data)
        with self._writing():
            if self.missing(begin, begin + len(data)) == [(begin, begin + len(data))]:
                self._append([(begin, len(data), checksum)])

    def drop(self, extents: Iterable[CachedExtent]) -> None:
        """Record that some extents are no longer in the cache.

        Raises:
            OSError: the disk is full, or fails.
        """
        with self._writing():
            held = [extent for extent in extents if self._extents.get(extent.begin) == extent]
            self._append([(extent.begin, 0, 0) for extent in held])
            if self._position > 2 * RECORD.size * len(self._extents) + MAX_UNUSED_BYTES:
                self._write_anew()

    def extents(self) -> list[CachedExtent]:
        """Return all extents, in order."""
        with self._lock:
            return [self._extents[begin] for begin in self._begins]

    def close(self) -> None:
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
            self._file = -1

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Keep other processes from writing, and know what they have written."""
        with self._lock:
            while True:
                self.refresh()
                fcntl.flock(self._file, fcntl.LOCK_EX)
                if self._is_current():
                    break
                self._open()  # another process wrote it anew meanwhile
            try:
                self.refresh()
                os.ftruncate(self._file, self._position)
                yield
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _append(self, records: list[tuple[int, int, int]]) -> None:
        os.write(self._file, b"".join(map(_encoded, records)))  # a part of it is cut off by the next writer
        self.refresh()

    def _write_anew(self) -> None:
        path = self._path.with_suffix(".new")
        path.write_bytes(
            b"".join(_encoded((each.begin, each.end - each.begin, each.checksum)) for each in self.extents())
        )
        path.replace(self._path)

    def _is_current(self) -> bool:
        try:
            return self._path.stat().st_ino == os.fstat(self._file).st_ino
        except FileNotFoundError:  # the complete file has another place now
            return True

    def _open(self) -> None:
        self.close()
        self._forget()
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def _forget(self) -> None:
        self._begins: list[int] = []
        self._extents: dict[int, CachedExtent] = {}
        self._num_bytes, self._position = 0, 0

    def _apply(self, record: bytes) -> None:
        begin, nbytes, checksum, check = RECORD.unpack(record)
        if check != xxhash.xxh3_64_intdigest(record[:-8]):
            return
        dropped = self._extents.pop(begin, None)
        if dropped is not None:
            self._num_bytes -= dropped.end - dropped.begin
            del self._begins[bisect_left(self._begins, begin)]
        if nbytes:
            self._extents[begin] = CachedExtent(begin, begin + nbytes, checksum)
            self._num_bytes += nbytes
            insort(self._begins, begin)


def _encoded(record: tuple[int, int, int]) -> bytes:
    fields = RECORD.pack(*record, 0)[:-8]
    return fields + xxhash.xxh3_64_intdigest(fields).to_bytes(8, "little")
