"""CacheFile: what a cache has of one source, in a sparse file beside its log."""

from __future__ import annotations

import ctypes
import fcntl
import os
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import xxhash

from expert_store.disk_cache.extent_log import CachedExtent, ExtentLog
from expert_store.disk_cache.file_lock import SHORT_LOCK_SECONDS, lock
from expert_store.disk_cache.private_files import RefusedFileError, open_private
from expert_store.errors import SourceError
from expert_store.sources.base import Bytes, Piece
from expert_store.sources.file import DirectFile

DATA, LOG = ".data", ".extents"
PUNCH_HOLE, KEEP_SIZE = 2, 1  # modes of fallocate(2)
_libc = ctypes.CDLL(None, use_errno=True)
KEPT = 1 << 60  # added to the times of what is dropped last
_time = count()  # of uses, over all files


class CacheFile:
    """A sparse file with some bytes of a source at their own places. Thread-safe, and shared with other processes.

    Each read compares the checksum of what it reads, so that bytes which another process has dropped meanwhile, or
    which a failure of the machine has lost, are read from the source again.

    Args:
        path: of the file, without its suffix.
        nbytes: of the source.

    Raises:
        RefusedFileError: another user may have made a file, or may change it.
        LockedError: another process is about to remove the file, and does not go on.
        OSError: the disk is full, or fails.
        SourceError: the file can't be opened.
    """

    def __init__(self, path: Path, nbytes: int):
        self.path, self.nbytes = path.with_name(path.name + DATA), nbytes
        self._file = _open_shared(self.path)
        try:
            if os.fstat(self._file).st_size != nbytes:
                os.ftruncate(self._file, nbytes)
            self.log = ExtentLog(path.with_name(path.name + LOG), nbytes)
            self._reads = DirectFile(self.path)
        except (OSError, SourceError):
            os.close(self._file)
            raise
        self._last_use: dict[int, int] = {}  # by the extent's begin
        self.is_kept: Callable[[int, int], bool] = lambda *_: False  # whether a range is dropped last
        self._num_damaged = 0  # extents whose bytes were not those that were stored
        self._unwritten: dict[int, Bytes] = {}  # by their begins, bytes that are about to be stored
        self._lock = threading.Lock()  # guards them

    @property
    def num_damaged(self) -> int:
        """Extents and records of them that could not be used."""
        return self._num_damaged + self.log.num_unusable

    def read(self, begin: int, target: Bytes, scratch: Bytes | None = None) -> list[tuple[int, int]]:
        """Fill the parts of a target that are in the cache, and return the ranges of the source that are not.

        It waits for no lock of another process.

        Args:
            begin: the offset of the target in the source.

        Raises:
            OSError: the disk fails, or a file was replaced by one that is refused.
        """
        end = begin + len(target)
        if self.missing(begin, end):
            self.log.refresh()
        damaged, missing, position = [], [], begin
        for extent in self.log.find(begin, end):
            if not self._read(extent, begin, target, scratch):
                damaged.append(extent)
                continue
            if extent.begin > position:
                missing.append((position, extent.begin))
            position = extent.end
        if damaged:
            self._num_damaged += len(damaged)
            self.log.forget(damaged)
        if position < end:
            missing.append((position, end))
        return [part for first, last in missing for part in self._take_unwritten(first, target[first - begin :], last)]

    def missing(self, begin: int, end: int) -> list[tuple[int, int]]:
        """Return the parts of a range that are not in the cache, as far as this process knows."""
        with self._lock:
            unwritten = [(first, first + len(data)) for first, data in self._unwritten.items()]
        missing = self.log.missing(begin, end)
        for first, last in unwritten if missing else ():
            missing = [part for each in missing for part in _without(each, first, last)]
        return missing

    def put_off(self, begin: int, data: Bytes) -> None:
        """Have some bytes read from memory until they are stored."""
        with self._lock:
            self._unwritten[begin] = data

    def settle(self, begin: int) -> None:
        """Forget bytes that were put off."""
        with self._lock:
            self._unwritten.pop(begin, None)

    def store(self, begin: int, data: Bytes) -> None:
        """Keep some bytes.

        Raises:
            OSError: the disk is full, or fails.
        """
        view, done = data.data, 0
        while done < len(view):
            done += os.pwrite(self._file, view[done:], begin + done)
        self.log.add(begin, view)
        self._last_use[begin] = next(_time)

    def write_out(self) -> None:
        """Have the disk write what was stored, and leave none of it in the page cache, as reads are direct.

        Raises:
            OSError: the disk is full, or fails.
        """
        os.fdatasync(self._file)
        os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_DONTNEED)

    def by_age(self) -> list[tuple[int, CachedExtent]]:
        """Return when each extent was used last in this process, and the extent; later for those to be dropped last."""
        return [
            (self._last_use.get(each.begin, 0) + (KEPT if self.is_kept(each.begin, each.end) else 0), each)
            for each in self.log.extents()
        ]

    def drop(self, extents: list[CachedExtent]) -> None:
        """Give the disk space of some extents back.

        Raises:
            OSError: the file system can't, or the disk fails.
        """
        self.log.drop(extents)
        for extent in extents:
            size = ctypes.c_int64(extent.end - extent.begin)
            mode = PUNCH_HOLE | KEEP_SIZE
            if _libc.fallocate(self._file, mode, ctypes.c_int64(extent.begin), size):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def _take_unwritten(self, begin: int, target: Bytes, end: int) -> list[tuple[int, int]]:
        """Fill what is about to be stored of a range, and return the rest of the range."""
        missing = [(begin, end)]
        with self._lock:
            for first, data in self._unwritten.items():
                low, high = max(begin, first), min(end, first + len(data))
                if low < high:
                    target[low - begin : high - begin] = data[low - first : high - first]
                    missing = [part for each in missing for part in _without(each, low, high)]
        return missing

    def _read(self, extent: CachedExtent, begin: int, target: Bytes, scratch: Bytes | None) -> bool:
        """Copy an extent's bytes to their place in a target; False if they are not those that were stored."""
        first, last = max(begin, extent.begin), min(begin + len(target), extent.end)
        is_whole = (first, last) == (extent.begin, extent.end)
        memory = target[first - begin : last - begin] if is_whole else np.empty(extent.end - extent.begin, np.uint8)
        try:
            self._reads.read([Piece(extent.begin, memory)], scratch)
        except SourceError:  # the disk fails: the source still has them
            return False
        if xxhash.xxh3_64_intdigest(memory.data) != extent.checksum:
            return False
        if not is_whole:
            target[first - begin : last - begin] = memory[first - extent.begin : last - extent.begin]
        self._last_use[extent.begin] = next(_time)
        return True


def _open_shared(path: Path) -> int:
    """Open a file, and lock it so that no process removes it."""
    while True:
        file = open_private(path)
        try:
            lock(file, fcntl.LOCK_SH, path, SHORT_LOCK_SECONDS)
            if os.fstat(file).st_nlink:
                return file
        except OSError:
            os.close(file)
            raise
        os.close(file)  # it was removed just before


def _without(part: tuple[int, int], begin: int, end: int) -> list[tuple[int, int]]:
    """Return what is left of a part without a range."""
    first, last = part
    left = [(first, min(last, begin)), (max(first, end), last)]
    return [each for each in left if each[0] < each[1]]


def remove_unused(path: Path) -> None:
    """Remove a file of a cache and its log, unless a process uses it.

    Args:
        path: of the sparse file.
    """
    try:
        file = open_private(path, os.O_RDONLY)
    except (FileNotFoundError, RefusedFileError):  # another process has removed it; or it is no file of a cache
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
        path.with_suffix(LOG).unlink(missing_ok=True)
    except BlockingIOError:
        return
    finally:
        os.close(file)
