"""Experts of files on a disk as one record each in a cache, so that a miss is one read."""

from __future__ import annotations

import hashlib
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np

from expert_store.arena import page_aligned
from expert_store.catalog import (
    ExpertCatalog,
    ExpertRecipe,
    Extent,
    LayerEntry,
    PackedRecord,
    ParameterRecipe,
    extents,
    num_reads,
)
from expert_store.disk_cache.cached_source import CachedSource, OpenCachedSource
from expert_store.disk_cache.disk_cache import DiskCache
from expert_store.keys import ExpertKey
from expert_store.sources.base import PAGE_BYTES, Bytes, LocalSource, OpenSource, Piece, Source, SourceIdentity
from expert_store.sources.open_sources import OpenSources

HUGE_BYTES = 2 << 20
KIND = "expert records"  # of the identity; another one where records are laid out otherwise


def on_huge_pages(nbytes: int) -> int:
    """Return the size of memory that has room for some bytes on huge pages, into which direct reads are faster."""
    return -(-nbytes // HUGE_BYTES) * HUGE_BYTES


class RecordLayout:
    """Places of experts' bytes in files and in records: an expert's record begins on a page and has all of its parts.

    Args:
        recipes: of the experts, in the order of their records.
    """

    def __init__(self, recipes: Mapping[ExpertKey, ExpertRecipe]):
        self.places: dict[ExpertKey, Mapping[Extent, int]] = {}  # of each expert's extents
        self.spans: dict[ExpertKey, tuple[int, int]] = {}  # begin and end of each record
        self._begins: list[int] = []  # of records
        self._parts: list[tuple[int, Extent]] = []
        end = 0
        for key, recipe in recipes.items():
            begin, places = end, dict[Extent, int]()
            for extent in sorted(set(extents(recipe)), key=lambda each: (each.source.name, each.offset, each.nbytes)):
                places[extent] = end
                self._parts.append((end, extent))
                end += extent.nbytes
            end = -(-end // PAGE_BYTES) * PAGE_BYTES
            self._begins.append(begin)
            self.places[key], self.spans[key] = places, (begin, end)
        self.nbytes = end
        self._part_begins = [begin for begin, _ in self._parts]
        self.sources: list[Source] = sorted({each.source for _, each in self._parts}, key=lambda each: each.name)
        numbers = {source: number for number, source in enumerate(self.sources)}
        parts = [[begin, numbers[each.source], each.offset, each.nbytes] for begin, each in self._parts]
        self.digest = hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    def records_of(self, begin: int, end: int) -> tuple[int, int]:
        """Return begin and end of the records that have bytes of a range."""
        last = bisect_left(self._begins, end)
        first = self._begins[bisect_right(self._begins, begin) - 1]
        return first, self._begins[last] if last < len(self._begins) else self.nbytes

    @property
    def largest_bytes(self) -> int:
        """Bytes of the largest record."""
        return max(end - begin for begin, end in self.spans.values())

    def in_files(self, piece: Piece) -> Iterator[tuple[Source, Piece]]:
        """Yield the pieces of files that a piece of records is read from; bytes between parts are set to 0."""
        position = piece.offset
        first_part, last_part = bisect_right(self._part_begins, piece.offset), bisect_left(self._part_begins, piece.end)
        for begin, extent in self._parts[max(0, first_part - 1) : last_part]:
            first, last = max(begin, piece.offset), min(begin + extent.nbytes, piece.end)
            if first < last:
                piece.target[position - piece.offset : first - piece.offset] = 0
                target = piece.target[first - piece.offset : last - piece.offset]
                yield extent.source, Piece(extent.offset + first - begin, target)
                position = last
        piece.target[position - piece.offset :] = 0


@dataclass(frozen=True)
class ExpertRecords:
    """The records of experts as a source, which is read from the experts' own files; see ``Source``.

    Args:
        name: of the model, for logs.
        digest: of the layout.
    """

    name: str
    digest: str
    layout: RecordLayout = field(repr=False, compare=False)

    @property
    def short_name(self) -> str:
        return self.name

    def open(self, *, is_direct: bool = True) -> OpenExpertRecords:
        """Open all files; see ``Source``."""
        del is_direct
        return OpenExpertRecords(self.layout)


class OpenExpertRecords:
    """The open files of experts, read as records; see ``OpenSource``."""

    def __init__(self, layout: RecordLayout):
        self._layout, self._files = layout, OpenSources(layout.sources)
        self._opened: list[OpenSource] = [self._files[source] for source in layout.sources]

    @property
    def identity(self) -> SourceIdentity:
        """The identity of the layout and of all files."""
        files = [opened.identity for opened in self._opened]
        versions = chain.from_iterable([each.kind, *each.version, each.nbytes] for each in files)
        return SourceIdentity(KIND, (self._layout.digest, *versions), self._layout.nbytes)

    def has_changed(self) -> bool:
        return any(opened.has_changed() for opened in self._opened)

    def refuse_changed(self) -> None:
        for opened in self._opened:
            opened.refuse_changed()

    def read(self, pieces: Sequence[Piece], scratch: Bytes | None = None) -> None:
        """Fill the targets of some pieces; see ``OpenSource``."""
        by_file: dict[Source, list[Piece]] = {}
        for piece in pieces:
            for source, part in self._layout.in_files(piece):
                by_file.setdefault(source, []).append(part)
        for source, parts in by_file.items():
            self._files[source].read(parts, scratch)

    def close(self) -> None:
        self._files.close()


@dataclass(frozen=True)
class RecordSource(CachedSource, LocalSource):
    """Records of experts with a cache in front of them, on a disk as the experts' own files are."""

    source: ExpertRecords

    def open(self, *, is_direct: bool = True) -> OpenRecords:
        """Open the files and the cache's file; see ``Source``."""
        opened = OpenRecords(self.source.open(is_direct=is_direct), self.source.layout, self.cache)
        self.cache.sources[self] = opened
        return opened


class OpenRecords(OpenCachedSource):
    """Open records: each is read at once from the cache, or part by part from the files; see ``OpenSource``.

    What is read is not stored: somebody waits for it, and for the disk. Whoever stores records reads ``inner``.
    """

    def __init__(self, inner: OpenExpertRecords, layout: RecordLayout, cache: DiskCache):
        super().__init__(inner, cache)
        self._layout, self._threads = layout, threading.local()

    def read(self, pieces: Sequence[Piece], scratch: Bytes | None = None) -> None:
        """Fill the targets of some pieces."""
        nbytes = sum(len(piece.target) for piece in pieces)
        if not nbytes:
            return
        span = min(piece.offset for piece in pieces), max(piece.end for piece in pieces)
        begin, end = self._layout.records_of(*span)
        with self.cache.gate.demand():
            file = self.file
            if file is None or self.missing(begin, end) == [(begin, end)]:
                self.inner.read(pieces, scratch)
                self.cache.count(0, nbytes)
                return
            memory = self._memory(end - begin)
            missing = self.cache.read(file, begin, memory, scratch)
            if missing:
                self.inner.read(
                    [Piece(first, memory[first - begin : last - begin]) for first, last in missing], scratch
                )
        for piece in pieces:
            np.copyto(piece.target, memory[piece.offset - begin : piece.end - begin])
        num_missing = sum(last - first for first, last in missing)
        self.cache.count(end - begin - num_missing, num_missing)

    def keep(self, begin: int, data: Bytes) -> bool:
        """Store bytes for which there is room, and have the disk write them now, as it would later be in demand."""
        file = self.file
        return file is not None and self.cache.store_all(file, begin, data, frees=False) and self.cache.write_out(file)

    def _memory(self, nbytes: int) -> Bytes:
        """Return memory of this thread, which its next call may return again."""
        known: Bytes | None = getattr(self._threads, "memory", None)
        if known is None or len(known) < nbytes:
            known = self._threads.memory = page_aligned(on_huge_pages(nbytes))
        return known[:nbytes]


def with_records(catalog: ExpertCatalog, name: str, cache: DiskCache) -> tuple[ExpertCatalog, RecordSource] | None:
    """Return a catalog that reads from records the experts that take several reads, and these records.

    Args:
        catalog: of files on a disk.
        name: of the model, for logs.

    Returns:
        None if each expert takes one read.
    """
    apart = {
        ExpertKey(layer, number): recipe
        for layer, entry in catalog.layers.items()
        for number, recipe in enumerate(entry.experts)
        if not isinstance(recipe, PackedRecord) and num_reads(recipe) > 1
    }
    if not apart:
        return None
    layout = RecordLayout(apart)
    records = RecordSource(ExpertRecords(name, layout.digest, layout), cache)
    moved = {key: _moved(recipe, records, layout.places[key]) for key, recipe in apart.items()}
    layers = {
        layer: LayerEntry(
            entry.layout,
            tuple(moved.get(ExpertKey(layer, number), recipe) for number, recipe in enumerate(entry.experts)),
            entry.encoding,
        )
        for layer, entry in catalog.layers.items()
    }
    return ExpertCatalog(layers), records


def _moved(
    recipe: Mapping[str, ParameterRecipe], records: RecordSource, places: Mapping[Extent, int]
) -> Mapping[str, ParameterRecipe]:
    """Return a recipe whose bytes are read from other places."""

    def moved(parameter: ParameterRecipe) -> ParameterRecipe:
        sources = tuple(
            replace(each, extent=Extent(records, places[each.extent], each.extent.nbytes)) for each in parameter.sources
        )
        return ParameterRecipe(sources, parameter.assemble)

    return {name: moved(parameter) for name, parameter in recipe.items()}
