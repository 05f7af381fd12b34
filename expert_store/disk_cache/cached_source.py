"""Sources with a cache on a disk in front of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from expert_store.disk_cache.absent_source import AbsentSource
from expert_store.disk_cache.cache_file import CacheFile
from expert_store.disk_cache.disk_cache import DiskCache
from expert_store.errors import SourceTimeoutError, SourceUnreadableError
from expert_store.file_name import FileName
from expert_store.sources.base import Bytes, OpenSource, Piece, Source, SourceFolder, SourceIdentity
from expert_store.sources.file import FileSource
from expert_store.sources.runs import runs_of


@dataclass(frozen=True)
class CachedSource:
    """A source with a cache in front of it; see ``Source``."""

    source: Source
    cache: DiskCache = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def short_name(self) -> str:
        return self.source.short_name

    def open(self, *, is_direct: bool = True) -> OpenCachedSource:
        """Open the source and its file of the cache; see ``Source``."""
        opened = OpenCachedSource(self._open(is_direct=is_direct), self.cache)
        self.cache.sources[self] = opened
        return opened

    def _open(self, *, is_direct: bool) -> OpenSource:
        """Open the source, or what is remembered of it if it can't be reached."""
        remembered = self.cache.remembered.identity(self.name)
        if remembered is not None and self.cache.is_offline:
            return AbsentSource(self.source, remembered)
        try:
            opened = self.source.open(is_direct=is_direct)
        except (SourceTimeoutError, SourceUnreadableError) as error:
            if remembered is None:
                raise
            self.cache.go_offline(error)
            return AbsentSource(self.source, remembered)
        if is_versioned(opened.identity) and opened.identity != remembered:
            self.cache.remembered.keep_identity(self.name, opened.identity)
        return opened

    @property
    def opened(self) -> OpenCachedSource:
        """The source as it was opened last."""
        found = self.cache.sources[self]
        assert isinstance(found, OpenCachedSource)
        return found

    def holds(self, begin: int, end: int) -> bool:
        """Return True if a range is on the disk; the source was opened before."""
        return self.opened.holds(begin, end)


@dataclass(frozen=True)
class CachedFolder:
    """A folder of sources with a cache in front of them; see ``SourceFolder``."""

    inner: SourceFolder
    cache: DiskCache = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def short_name(self) -> str:
        return self.inner.short_name

    def names(self) -> Collection[FileName]:
        """Return the names of its files, as they are remembered if it can't be reached."""
        remembered = self.cache.remembered.names(self.name)
        if remembered is not None and self.cache.is_offline:
            return remembered
        try:
            names = self.inner.names()
        except (SourceTimeoutError, SourceUnreadableError) as error:
            if remembered is None:
                raise
            self.cache.go_offline(error)
            return remembered
        self.cache.remembered.keep_names(self.name, names)
        return names

    def source(self, name: FileName, *, is_own: bool = False) -> Source:
        """Return a source; one that is on a disk needs no cache."""
        found = self.inner.source(name, is_own=is_own)
        return found if isinstance(found, FileSource) else CachedSource(found, self.cache)

    def folder(self, name: FileName) -> CachedFolder:
        return CachedFolder(self.inner.folder(name), self.cache)

    def local_copy(self, patterns: Collection[str], through: SourceFolder | None = None) -> Path:
        return self.inner.local_copy(patterns, through or self)


class OpenCachedSource:
    """An open source, whose bytes are kept on a disk once they are read; see ``OpenSource``."""

    def __init__(self, inner: OpenSource, cache: DiskCache):
        self.inner, self.cache = inner, cache
        self._file: CacheFile | None = None
        self._is_kept = is_versioned(inner.identity)

    @property
    def file(self) -> CacheFile | None:
        """Its file of the cache; None if it has none, or none that can be used now."""
        if self._file is None and self._is_kept:
            self._file = self.cache.file(self.inner.identity)
        return self._file

    @property
    def identity(self) -> SourceIdentity:
        return self.inner.identity

    def has_changed(self) -> bool:
        return self.inner.has_changed()

    def refuse_changed(self) -> None:
        self.inner.refuse_changed()

    def holds(self, begin: int, end: int) -> bool:
        """Return True if a range is on the disk."""
        return not self.missing(begin, end)

    def missing(self, begin: int, end: int) -> list[tuple[int, int]]:
        """Return the parts of a range that are not on the disk, or about to be."""
        file = self.file
        return [(begin, end)] if file is None else file.missing(begin, end)

    def read(self, pieces: Sequence[Piece], scratch: Bytes | None = None) -> None:
        """Fill the targets of some pieces from the disk, and what is missing there from the source."""
        runs = [(run, _memory(run)) for run in runs_of(pieces, max_gap_bytes=0)]
        missing = [
            Piece(begin, memory[begin - run[0].offset : end - run[0].offset])
            for run, memory in runs
            for begin, end in self._read_held(run[0].offset, memory, scratch)
        ]
        num_missing = sum(len(piece.target) for piece in missing)
        if missing:
            with self.cache.gate.demand():
                self.inner.read(missing, scratch)
        self.cache.count(sum(len(memory) for _, memory in runs) - num_missing, num_missing)
        for run, memory in runs:
            for piece in run:
                if piece.target is not memory:
                    begin = piece.offset - run[0].offset
                    np.copyto(piece.target, memory[begin : begin + len(piece.target)])
        if (file := self.file) is not None:
            for piece in missing:
                self.cache.writer.put(file, piece.offset, piece.target)

    def keep(self, begin: int, data: Bytes) -> bool:
        """Store bytes that were read from the source; return False if the disk does not take them."""
        file = self.file
        return file is not None and self.cache.store_all(file, begin, data)

    def close(self) -> None:
        """Close the source once all that was read is stored; its file serves others, too."""
        self.cache.writer.flush()
        self.inner.close()

    def _read_held(self, begin: int, memory: Bytes, scratch: Bytes | None) -> list[tuple[int, int]]:
        file = self.file
        return [(begin, begin + len(memory))] if file is None else self.cache.read(file, begin, memory, scratch)


def is_versioned(identity: SourceIdentity) -> bool:
    """Return True if another content could be told from this one."""
    return all(map(str, identity.version))


def _memory(run: Sequence[Piece]) -> Bytes:
    """Return the memory that a run is read into: the target of its only piece, or new one."""
    if len(run) == 1:
        return run[0].target
    return np.empty(max(piece.end for piece in run) - run[0].offset, np.uint8)
