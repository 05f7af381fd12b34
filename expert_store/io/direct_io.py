"""Positioned reads that bypass the page cache where the file system allows it."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from expert_store.arena import Bytes, page_aligned
from expert_store.catalog import PAGE_BYTES
from expert_store.errors import FileChangedError, ShortReadError

log = logging.getLogger(__name__)

MAX_READ_BYTES = 1 << 30  # a read call moves less than 2 GiB
BOUNCE_BYTES = 2 << 20  # one huge page
MAX_GAP_BYTES = 64 << 10  # reading that many unused bytes costs less than another call


class Piece(NamedTuple):
    """A run of bytes of a file and the memory that they are read into."""

    offset: int
    target: Bytes  # (nbytes,)

    @property
    def end(self) -> int:
        return self.offset + len(self.target)


class DirectFile:
    """A file whose bytes are read by position. Safe to use from several threads, each with a bounce buffer of its own.

    Direct reads need offset, length and memory aligned to ``PAGE_BYTES``. Aligned pieces are read straight into their
    target; others are read as whole pages into the bounce buffer and copied from there. Where the file system refuses
    direct reads, the file is read through the page cache and dropped from it afterwards; a warning names the file.

    Raises:
        OSError: the file can't be opened.
    """

    def __init__(self, path: Path):
        self._path = path
        self._buffered = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._opened_as, self._is_changed = self._version(), False
        self._direct: int | None = None
        try:
            self._direct = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        except OSError as error:
            self._give_up_direct(error)

    @property
    def is_direct(self) -> bool:
        return self._direct is not None

    def has_changed(self) -> bool:
        """Return True if the file was written to since it was opened; once True, it stays so.

        A file that was deleted, or replaced by another one of its name, stays as it was for those who have opened it.
        """
        self._is_changed = self._is_changed or self._version() != self._opened_as
        return self._is_changed

    def refuse_changed(self) -> None:
        """Raise FileChangedError if the file was written to since it was opened."""
        if self.has_changed():
            raise FileChangedError(f"{self._path.name} was written to while it is served; restart the server")

    def _version(self) -> tuple[int, int]:
        status = os.fstat(self._buffered)
        return status.st_size, status.st_mtime_ns

    def read(self, pieces: Sequence[Piece], bounce: Bytes) -> None:
        """Fill the targets of some pieces; ``bounce`` is page-aligned and a multiple of a page long.

        Raises:
            OSError: the read failed.
            ShortReadError: the file ends inside a piece.
        """
        for run in _runs(pieces):
            if self._direct is None:
                for piece in run:
                    self._read_buffered(piece.target, piece.offset)
            elif len(run) == 1 and _is_aligned(run[0]):
                self._read_pages(run[0].target, run[0].offset, len(run[0].target))
            else:
                self._read_bounced(run, bounce)

    def close(self) -> None:
        for file in (self._buffered, self._direct):
            if file is not None:
                with suppress(OSError):
                    os.close(file)

    def _read_bounced(self, run: Sequence[Piece], bounce: Bytes) -> None:
        position, end = run[0].offset // PAGE_BYTES * PAGE_BYTES, max(piece.end for piece in run)
        while position < end:
            needed = min(end - position, len(bounce))
            self._read_pages(bounce[: _pages(needed)], position, needed)
            for piece in run:
                first, last = max(piece.offset, position), min(piece.end, position + needed)
                if first < last:
                    target = piece.target[first - piece.offset : last - piece.offset]
                    np.copyto(target, bounce[first - position : last - position])  # releases the GIL
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
        return ShortReadError(
            f"{self._path.name} ends at byte {offset}, inside an expert; it was cut short or replaced"
        )

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


def bounce_buffer() -> Bytes:
    """Return the scratch memory of one reading thread."""
    return page_aligned(BOUNCE_BYTES)


def _runs(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Group pieces that lie close to each other in the file, to be read together."""
    run: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: piece.offset):
        if run and piece.offset - run[-1].end > MAX_GAP_BYTES:
            yield run
            run = []
        run.append(piece)
    if run:
        yield run


def _pages(nbytes: int) -> int:
    return -(-nbytes // PAGE_BYTES) * PAGE_BYTES


def _is_aligned(piece: Piece) -> bool:
    return not (piece.offset % PAGE_BYTES or len(piece.target) % PAGE_BYTES or piece.target.ctypes.data % PAGE_BYTES)
