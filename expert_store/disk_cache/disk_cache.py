"""DiskCache: the files of a cache, within a size."""

from __future__ import annotations

import errno
import hashlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from expert_store.disk_cache.cache_file import DATA, CacheFile, remove_unused
from expert_store.disk_cache.delayed_writer import DelayedWriter
from expert_store.disk_cache.extent_log import EXTENT_BYTES, CachedExtent
from expert_store.disk_cache.file_lock import LockedError
from expert_store.disk_cache.link_gate import LinkGate
from expert_store.disk_cache.private_files import RefusedFileError, make_private_folder
from expert_store.disk_cache.remembered import Remembered
from expert_store.errors import CheckpointError
from expert_store.io.disk_bytes import disk_bytes
from expert_store.sources.base import Bytes, Source, SourceIdentity

log = logging.getLogger(__name__)

FREED_SHARE = 1 / 32  # of the size, freed at once
MEASURE_SHARE = 1 / 64  # of the size, written between two measurements of what all processes have stored
OFF_SECONDS = 60.0  # without an attempt to store after it failed
NO_ROOM = "the disk has no room for more"
FAILURES = ("locked", "disk", "refused", "damaged")  # reasons for which bytes were not stored or not used


class HoldsRanges(Protocol):
    """An open source that knows which of its bytes are on the disk."""

    def holds(self, begin: int, end: int) -> bool: ...


class DiskCache:
    """A folder of sparse files, which hold what was read of slower sources. Thread-safe, shared with other processes.

    When it is full, files that no process uses are removed, and then the extents that this process has not used for
    the longest time. When the disk is full, its size shrinks to what it has; when the disk fails, or another process
    keeps a file locked, nothing is stored for a minute. Reads go on in any case, and wait for no lock of a process.

    Its files are of this user alone. Those that another user may have made or may change are not used.

    Args:
        max_bytes: its size, over all processes; None for what the disk has.

    Raises:
        CheckpointError: the folder can't be made, or is open to other users.
    """

    def __init__(self, folder: Path, max_bytes: int | None = None):
        self.folder, self.max_bytes, self.gate = folder, max_bytes, LinkGate()
        self.writer, self.remembered = DelayedWriter(self.store_all), Remembered(folder)
        self.is_offline = False  # whether sources could not be reached at the start
        self._opening = threading.Lock()  # held while a file is opened
        self._room = threading.RLock()  # held while room is measured and made, for which no read waits; guards:
        self._measured_bytes, self._unmeasured_bytes = 0, 0
        self.sources: dict[Source, HoldsRanges] = {}  # those that were opened, in order
        self._lock = threading.Lock()  # taken after the others, and nothing is waited for; guards the fields below
        self._files: dict[str, CacheFile] = {}
        self._unusable_until: dict[str, float] = {}  # times at which files that could not be opened are tried again
        self._off_until, self._trouble, self._is_told = 0.0, "", False
        self._failures: Counter[str] = Counter()
        self.remote_bytes = 0  # read from the sources, on demand
        self.hit_bytes = 0  # read from the disk
        try:
            make_private_folder(folder)
            self._measure()
        except OSError as error:
            reason = error.strerror or error
            raise CheckpointError(f"{folder} can't be a cache: {reason}; give a folder of its own") from error

    @property
    def is_off(self) -> bool:
        """True while nothing is stored, as the disk fails or another process keeps a file locked."""
        return time.monotonic() < self._off_until

    def lack(self, nbytes: int) -> str | None:
        """Return why so many bytes can't be stored beside the others, by what is known; None if they can."""
        if self.is_off:
            return self._trouble
        most = self.max_bytes
        return NO_ROOM if most is not None and self.stored_bytes + nbytes > most else None

    def failures(self) -> Mapping[str, int]:
        """Return how often bytes were not stored or not used, by the reasons in ``FAILURES``."""
        with self._lock:
            counts, files = Counter(self._failures), list(self._files.values())
        counts["damaged"] = sum(file.num_damaged for file in files)
        return {reason: counts[reason] for reason in FAILURES}

    def file(self, identity: SourceIdentity) -> CacheFile | None:
        """Return the file for the bytes of a source; None if it can't be used now."""
        key = hashlib.blake2b(repr(identity).encode(), digest_size=20).hexdigest()
        with self._opening:
            found = self._files.get(key)
            if found is None and time.monotonic() >= self._unusable_until.get(key, 0.0):
                try:
                    found = CacheFile(self.folder / key, identity.nbytes)
                except (OSError, CheckpointError) as error:
                    self._set_aside(key, error)
                else:
                    with self._lock:
                        self._files[key] = found
            return found

    def read(self, file: CacheFile, begin: int, target: Bytes, scratch: Bytes | None) -> list[tuple[int, int]]:
        """Fill the parts of a target that a file has, and return the ranges that it lacks: all if the disk fails."""
        try:
            return file.read(begin, target, scratch)
        except OSError as error:
            self._turn_off(error)
            return [(begin, begin + len(target))]

    def go_offline(self, reason: Exception) -> None:
        """Have sources opened by what is remembered of them from now on; reads still try to reach them."""
        if not self.is_offline:
            self.is_offline = True
            log.warning("%s; what %s has of it is served until it answers", reason, self.folder)

    def count(self, hit_bytes: int, remote_bytes: int) -> None:
        """Count bytes of a read, by where they were found."""
        with self._lock:
            self.hit_bytes += hit_bytes
            self.remote_bytes += remote_bytes

    def has_room(self, nbytes: int) -> bool:
        """Return True if so many bytes can be stored without the removal of others."""
        with self._room:
            if self.lack(nbytes) == NO_ROOM:
                self._measure()
            return self.lack(nbytes) is None

    def store(self, file: CacheFile, begin: int, data: Bytes, *, frees: bool = True) -> bool:
        """Keep some bytes of a source, if the disk has room for them; return whether it does.

        Args:
            frees: whether others may be removed for them.
        """
        if self.is_off or not len(data):
            return False
        try:
            with self._room:
                if self.is_off:  # since another thread has tried
                    return False
                if not self.has_room(len(data)):
                    if not frees:
                        return False
                    self._free(len(data))
            file.store(begin, data)
        except OSError as error:
            return self._shrink(file, begin, data, error)
        self._turn_on()
        with self._room:
            self._unmeasured_bytes += len(data)
            if self.max_bytes is not None and self._unmeasured_bytes > self.max_bytes * MEASURE_SHARE:
                self._measure()
        return True

    def store_all(self, file: CacheFile, begin: int, data: Bytes, *, frees: bool = True) -> bool:
        """Keep bytes of any number, as ``store`` does."""
        return all(
            self.store(file, begin + first, data[first : first + EXTENT_BYTES], frees=frees)
            for first in range(0, len(data), EXTENT_BYTES)
        )

    def write_out(self, file: CacheFile) -> bool:
        """Have the disk write what was stored in a file; return whether it does."""
        try:
            file.write_out()
        except OSError as error:
            self._turn_off(error)
            return False
        return True

    def make_room(self, nbytes: int) -> None:
        """Remove files that no process uses, the oldest first, until so many bytes have room or none is left.

        Raises:
            OSError: the disk fails.
        """
        with self._room:
            if self.max_bytes is not None:
                self._measure()
                self._remove_unused(self.stored_bytes + nbytes - self.max_bytes)
                self._measure()

    @property
    def stored_bytes(self) -> int:
        """Bytes that it takes on the disk, by the last measurement."""
        return self._measured_bytes + self._unmeasured_bytes

    def _measure(self) -> None:
        self._measured_bytes, self._unmeasured_bytes = sum(map(disk_bytes, self.folder.glob(f"*{DATA}"))), 0

    def _free(self, nbytes: int) -> None:
        """Remove what was not used for the longest time until so many bytes have room."""
        assert self.max_bytes is not None
        to_free = self.stored_bytes + nbytes - self.max_bytes + int(self.max_bytes * FREED_SHARE)
        to_free -= self._remove_unused(to_free)
        with self._lock:
            files = dict(self._files)
        oldest = sorted((age, key, extent) for key, file in files.items() for age, extent in file.by_age())
        dropped: dict[str, list[CachedExtent]] = {}
        for _, key, extent in oldest:
            if to_free <= 0:
                break
            dropped.setdefault(key, []).append(extent)
            to_free -= extent.end - extent.begin
        for key, extents in dropped.items():
            files[key].drop(extents)
        self._measure()

    def _remove_unused(self, to_free: int) -> int:
        """Remove files that no process uses until so many bytes are free; return how many are."""
        freed = 0
        with self._lock:
            ours = {file.path for file in self._files.values()}
        for path in sorted(set(self.folder.glob(f"*{DATA}")) - ours, key=_last_written):
            if freed < to_free:
                size = disk_bytes(path)
                remove_unused(path)
                freed += size - disk_bytes(path)
        return freed

    def _shrink(self, file: CacheFile, begin: int, data: Bytes, error: OSError) -> bool:
        """Make the cache smaller as the disk is full, and try once more."""
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            self._turn_off(error)
            return False
        with self._room:
            self._measure()
            self.max_bytes = int(self.stored_bytes * (1 - FREED_SHARE))
            log.warning("the disk of %s is full; the cache shrinks to %d MiB", self.folder, self.max_bytes >> 20)
            try:
                self._free(len(data))
                file.store(begin, data)
            except OSError as again:
                self._turn_off(again)
                return False
        return True

    def _set_aside(self, key: str, error: Exception) -> None:
        """Use a file that can't be opened no more for a while."""
        is_new = key not in self._unusable_until
        self._unusable_until[key] = time.monotonic() + OFF_SECONDS
        if not isinstance(error, RefusedFileError):
            self._turn_off(error)
            return
        with self._lock:
            self._failures["refused"] += 1
        if is_new:
            log.warning("nothing of one file is kept in %s: %s", self.folder, error)

    def _turn_off(self, error: Exception) -> None:
        """Store nothing for a while, and say so once until bytes are stored again."""
        kinds = {LockedError: "locked", RefusedFileError: "refused"}
        with self._lock:
            self._failures[kinds.get(type(error), "disk")] += 1
            self._off_until, self._trouble = time.monotonic() + OFF_SECONDS, str(error)
            is_told, self._is_told = self._is_told, True
        if not is_told:
            log.warning("nothing is stored in %s, which is tried again each minute: %s", self.folder, error)

    def _turn_on(self) -> None:
        with self._lock:
            was_off, self._is_told = self._is_told, False
        if was_off:
            log.warning("bytes are stored in %s again", self.folder)


def _last_written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
