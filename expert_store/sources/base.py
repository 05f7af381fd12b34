"""Protocols of sources of bytes, from which a model is read. What is built on them knows no files.

A file is a source (``file.py``), and a folder on a disk is a folder of them (``folder.py``). Another kind, such as a
bucket, is another module with a class for each of the three protocols below. A read returns when it is done;
``SourceReader`` (``io/reader.py``) makes reads of any kind asynchronous, by priority.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from expert_store.file_name import FileName

PAGE_BYTES = 4096  # direct reads and pages of memory are multiples of it

Bytes = npt.NDArray[np.uint8]


class Piece(NamedTuple):
    """A run of bytes of a source and the memory that they are read into.

    ``pages`` is memory around the target that a read may overwrite: it starts on a page, the target lies in it
    ``offset % PAGE_BYTES`` bytes later, and it ends a page or more after the target's last page.
    """

    offset: int
    target: Bytes  # (nbytes,)
    pages: Bytes | None = None

    @property
    def end(self) -> int:
        return self.offset + len(self.target)


class SourceIdentity(NamedTuple):
    """Tells a content from others: equal identities are of equal bytes, as far as the storage can tell.

    A cache or a fingerprint may compare and keep them.
    """

    kind: str  # of source, such as "file"
    version: tuple[int | str, ...]  # device, inode and time of the last write of a file
    nbytes: int


class Source(Protocol):
    """The name of some bytes, a hashable value: sources that are equal have the same bytes."""

    @property
    def name(self) -> str:
        """The complete name, for logs and for administrators: the path of a file. It holds no secrets."""

    @property
    def short_name(self) -> str:
        """The last part of the name."""

    def open(self, *, is_direct: bool = True) -> OpenSource:
        """Open the source.

        Args:
            is_direct: whether large parts are read, past the system's caches; False for some small ones.

        Raises:
            SourceError: it can't be opened.
        """

    def __hash__(self) -> int: ...


class LocalSource:
    """Base of sources whose bytes are on disks of this machine."""


class SourceFolder(Protocol):
    """Sources that belong to each other, by name: a folder on a disk, or a repository."""

    @property
    def name(self) -> str:
        """The complete name, for messages: the path of a folder. It holds no secrets."""

    @property
    def short_name(self) -> str:
        """The last part of the name."""

    def names(self) -> Collection[FileName]:
        """Return the names of what is in it, without those that no file of a model may have.

        Raises:
            SourceError: they can't be had.
        """

    def source(self, name: FileName, *, is_own: bool = False) -> Source:
        """Return a source in it, which need not be there.

        Args:
            is_own: whether one that only refers to a place elsewhere, such as a link, is refused.

        Raises:
            CheckpointError: it is refused.
        """

    def folder(self, name: FileName) -> SourceFolder:
        """Return a folder in it, which need not be there."""

    def local_copy(self, patterns: Collection[str], through: SourceFolder | None = None) -> Path:
        """Return a folder on a disk with its small files, for libraries that read no sources.

        Args:
            patterns: of the files' names, as ``*.json``.
            through: the same folder with a cache in front, to be read instead.

        Raises:
            SourceError: a file can't be read.
        """


class OpenSource(Protocol):
    """An open source. Safe to use from several threads, each with scratch memory of its own."""

    @property
    def identity(self) -> SourceIdentity:
        """The identity of the bytes that a read would get now.

        Raises:
            SourceError: the storage can't tell.
        """

    def has_changed(self) -> bool:
        """Return True if the bytes are others than when it was opened; once True, it stays so.

        Raises:
            SourceError: the storage can't tell.
        """

    def refuse_changed(self) -> None:
        """Raise SourceChangedError if the bytes are others than when it was opened."""

    def read(self, pieces: Sequence[Piece], scratch: Bytes | None = None) -> None:
        """Fill the targets of some pieces, and return when all are filled.

        Args:
            scratch: memory of the calling thread, page-aligned and a multiple of a page long. None for small reads.

        Raises:
            SourceError: the read failed; what is in the targets is undefined.
        """

    def close(self) -> None:
        """Close it; no thread reads any more."""
