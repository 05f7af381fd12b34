"""A file as a source: positioned reads that bypass the page cache where the file system allows it."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from expert_store.errors import ShortReadError, SourceChangedError, source_error
from expert_store.sources.base import PAGE_BYTES, Bytes, LocalSource, Piece, SourceIdentity
from expert_store.sources.regular_file import open_regular
from expert_store.sources.runs import runs_of

log = logging.getLogger(__name__)

MAX_READ_BYTES = 1 << 30  # a read call moves less than 2 GiB


@dataclass(frozen=True)
class FileSource(LocalSource):
    """A file on a disk."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def short_name(self) -> str:
        return self.path.name

    def open(self, *, is_direct: bool = True) -> DirectFile:
        """Open the file, which must be a regular one; see ``Source``."""
        return DirectFile(self.path, is_direct=is_direct)


class DirectFile:
    """An open file, as an ``OpenSource``.

    Direct reads need offset, length and memory aligned to ``PAGE_BYTES``. Aligned pieces and those with pages of their
    own are read straight; others are read as whole pages into the scratch memory and copied from there. Where the file
    system refuses direct reads, the file is read through the page cache and dropped from it afterwards; a warning names
    the file.

    Args:
        is_direct: False to read through the page cache.

    Raises:
        SourceError: the file can't be opened.
        CheckpointError: it is not a regular file.
    """

    def __init__(self, path: Path, *, is_direct: bool = True):
        self._path = path
        with closing(open_regular(path, most=None)) as file:
            self._buffered = os.dup(file.fileno())
        self._opened_as, self._is_changed = self.identity, False
        self._direct: int | None = None
        if is_direct:
            try:
                self._direct = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
            except OSError as error:
                self._give_up_direct(error)

    @property
    def is_direct(self) -> bool:
        return self._direct is not None

    @property
    def identity(self) -> SourceIdentity:
        """Device, inode, time of the last write, and size."""
        try:
            status = os.fstat(self._buffered)
        except OSError as error:
            raise source_error(self._path.name, error) from error
        return SourceIdentity("file", (status.st_dev, status.st_ino, status.st_mtime_ns), status.st_size)

    def has_changed(self) -> bool:
        """Return True if the file was written to since it was opened; once True, it stays so.

        A file that was deleted, or replaced by another one of its name, stays as it was for those who have opened it.
        """
        self._is_changed = self._is_changed or self.identity != self._opened_as
        return self._is_changed

    def refuse_changed(self) -> None:
        """Raise SourceChangedError if the file was written to since it was opened."""
        if self.has_changed():
            raise SourceChangedError(self._path.name, "was written to while it is served; restart the server")

    def read(self, pieces: Sequence[Piece], scratch: Bytes | None = None) -> None:
        """Fill the targets of some pieces; see ``OpenSource``. Without scratch memory the page cache is used."""
        try:
            for run in runs_of(pieces):
                if self._direct is None or scratch is None:
                    for piece in run:
                        self._read_buffered(piece.target, piece.offset)
                elif len(run) == 1 and _is_aligned(run[0]):
                    self._read_pages(run[0].target, run[0].offset, len(run[0].target))
                elif len(run) == 1 and run[0].pages is not None:
                    within = run[0].offset % PAGE_BYTES
                    needed = within + len(run[0].target)
                    self._read_pages(run[0].pages[: _pages(needed)], run[0].offset - within, needed)
                else:
                    self._read_through_scratch(run, scratch)
        except OSError as error:
            raise source_error(self._path.name, error) from error

    def close(self) -> None:
        for file in (self._buffered, self._direct):
            if file is not None:
                with suppress(OSError):
                    os.close(file)

    def _read_through_scratch(self, run: Sequence[Piece], scratch: Bytes) -> None:
        position, end = run[0].offset // PAGE_BYTES * PAGE_BYTES, max(piece.end for piece in run)
        while position < end:
            needed = min(end - position, len(scratch))
            self._read_pages(scratch[: _pages(needed)], position, needed)
            for piece in run:
                first, last = max(piece.offset, position), min(piece.end, position + needed)
                if first < last:
                    target = piece.target[first - piece.offset : last - piece.offset]
                    np.copyto(target, scratch[first - position : last - position])  # releases the GIL
            position += needed

    def _read_pages(self, target: Bytes, offset: int, needed: int) -> None:
        """Read whole pages; the file may end after the ``needed`` bytes."""
        done = 0
        while done < needed:
            if self._direct is None or done % PAGE_BYTES:  # the read ended off a page: go on without alignment
                self._read_buffered(target[done:needed], offset + done)
                return
            try:
                count = os.preadv(self._direct, [target[done : done + MAX_READ_BYTES].data], offset + done)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._give_up_direct(error)
                continue
            if count == 0:
                raise self._short(offset + done)
            done += count

    def _read_buffered(self, target: Bytes, offset: int) -> None:
        done = read_fully(self._buffered, target, offset)
        if done < len(target):
            raise self._short(offset + done)
        with suppress(OSError):  # only a hint
            os.posix_fadvise(self._buffered, offset, len(target), os.POSIX_FADV_DONTNEED)

    def _short(self, offset: int) -> ShortReadError:
        reason = f"ends at byte {offset}, inside the weights; it was cut short or replaced"
        return ShortReadError(self._path.name, reason)

    def _give_up_direct(self, error: OSError) -> None:
        # The descriptor stays open: another thread may be reading through it.
        self._direct = None
        log.warning("%s cannot be read directly (%s); reading it through the page cache", self._path, error.strerror)


def read_fully(file: int, target: Bytes, offset: int) -> int:
    """Read through the page cache until the target is full or the file ends; return the number of bytes read."""
    done = 0
    while done < len(target):
        count = os.preadv(file, [target[done : done + MAX_READ_BYTES].data], offset + done)
        if count == 0:
            break
        done += count
    return done


def _pages(nbytes: int) -> int:
    return -(-nbytes // PAGE_BYTES) * PAGE_BYTES


def _is_aligned(piece: Piece) -> bool:
    return not (piece.offset % PAGE_BYTES or len(piece.target) % PAGE_BYTES or piece.target.ctypes.data % PAGE_BYTES)
