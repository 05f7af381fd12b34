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

from expert_store.disk_cache.file_lock import LOCK_SECONDS, LockedError, lock
from expert_store.disk_cache.private_files import open_private, write_private

RECORD = struct.Struct("<QQQQ")  # offset, bytes, checksum of the bytes (0 bytes: the extent was dropped), of the record
MAX_UNUSED_BYTES = 1 << 20  # of records that count no more, before the log is written anew
READ_BYTES = 8 << 20
EXTENT_BYTES = 4 << 20  # at most; larger reads are stored in parts


class CachedExtent(NamedTuple):
    """Bytes that are in the cache."""

    begin: int
    end: int
    checksum: int


class ExtentLog:
    """The extents of one file, which never overlap. Thread-safe, and shared with other processes.

    A record is appended when its bytes are written, by one process at a time. A process that is killed leaves at most
    a part of a record, which the next one cuts off. After a failure of the machine there may be records whose bytes
    were not written; their checksums tell. A reader waits for no writer: not for a thread, and not for a process.

    Args:
        source_bytes: size of the source, which no extent passes.

    Raises:
        OSError: the log can't be opened or read.
    """

    def __init__(self, path: Path, source_bytes: int):
        self._path, self._source_bytes = path, source_bytes
        self._writer = threading.Lock()  # held by the thread that waits for the file's lock, or has it
        self._lock = threading.RLock()  # guards the fields below; taken after the others, and nothing is waited for
        self._file = -1
        self.num_unusable = 0  # records that were ignored
        self._start_anew()
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
        with self._writing() as file:
            if self.missing(begin, begin + len(data)) == [(begin, begin + len(data))]:
                self._append(file, [(begin, len(data), checksum)])

    def forget(self, extents: Iterable[CachedExtent]) -> None:
        """Take some extents, whose bytes are damaged, as missing; the next write records it."""
        with self._lock:
            for extent in extents:
                if self._extents.get(extent.begin) == extent:
                    self._remove(extent.begin)
                    self._forgotten.add(extent.begin)

    def drop(self, extents: Iterable[CachedExtent]) -> None:
        """Record that some extents are no longer in the cache.

        Raises:
            OSError: the disk is full, or fails.
        """
        with self._writing() as file:
            with self._lock:
                held = [extent for extent in extents if self._extents.get(extent.begin) == extent]
            self._append(file, [(extent.begin, 0, 0) for extent in held])
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
    def _writing(self) -> Iterator[int]:
        """Keep others from writing, and know what they have written; yields the file to append to.

        Raises:
            LockedError: another one writes for too long.
        """
        if not self._writer.acquire(timeout=LOCK_SECONDS):
            raise LockedError(self._path, LOCK_SECONDS)
        try:
            file = self._locked()
            try:
                os.ftruncate(file, self._position)
                with self._lock:
                    forgotten = set(self._forgotten)
                self._append(file, [(begin, 0, 0) for begin in forgotten if begin not in self._extents])
                with self._lock:
                    self._forgotten -= forgotten
                yield file
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)
                os.close(file)
        finally:
            self._writer.release()

    def _locked(self) -> int:
        """Return another descriptor of the log's file, which is locked, with all records known."""
        while True:
            with self._lock:
                self.refresh()
                file = os.dup(self._file)
            try:
                lock(file, fcntl.LOCK_EX, self._path, LOCK_SECONDS)
                with self._lock:
                    self.refresh()
                    if os.path.sameopenfile(file, self._file):
                        return file
                fcntl.flock(file, fcntl.LOCK_UN)  # another process wrote the log anew meanwhile
            except OSError:
                os.close(file)
                raise
            os.close(file)

    def _append(self, file: int, records: list[tuple[int, int, int]]) -> None:
        if records:
            os.write(file, b"".join(map(encoded, records)))  # a part of it is cut off by the next writer
            self.refresh()

    def _write_anew(self) -> None:
        records = ((each.begin, each.end - each.begin, each.checksum) for each in self.extents())
        write_private(self._path, b"".join(map(encoded, records)))

    def _is_current(self) -> bool:
        try:
            return self._path.stat().st_ino == os.fstat(self._file).st_ino
        except FileNotFoundError:  # the complete file has another place now
            return True

    def _open(self) -> None:
        self.close()
        self._start_anew()
        self._file = open_private(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND)

    def _start_anew(self) -> None:
        self._begins: list[int] = []
        self._extents: dict[int, CachedExtent] = {}
        self._forgotten: set[int] = set()  # begins of extents whose bytes are damaged
        self._num_bytes, self._position = 0, 0

    def _apply(self, record: bytes) -> None:
        begin, nbytes, checksum, check = RECORD.unpack(record)
        if check != xxhash.xxh3_64_intdigest(record[:-8]) or not self._is_possible(begin, nbytes):
            self.num_unusable += 1
            return
        if begin in self._extents:
            self._remove(begin)
        if nbytes:
            self._extents[begin] = CachedExtent(begin, begin + nbytes, checksum)
            self._num_bytes += nbytes
            insort(self._begins, begin)

    def _is_possible(self, begin: int, nbytes: int) -> bool:
        """Return True if a record's extent is one that is stored, beside all others."""
        if nbytes > EXTENT_BYTES or begin + nbytes > self._source_bytes:
            return False
        return all(extent.begin == begin for extent in self.find(begin, begin + nbytes))

    def _remove(self, begin: int) -> None:
        extent = self._extents.pop(begin)
        self._num_bytes -= extent.end - extent.begin
        del self._begins[bisect_left(self._begins, begin)]


def encoded(record: tuple[int, int, int]) -> bytes:
    """Return a record as it is in the log: offset, bytes, checksum of the bytes."""
    fields = RECORD.pack(*record, 0)[:-8]
    return fields + xxhash.xxh3_64_intdigest(fields).to_bytes(8, "little")
