"""The read of one expert into one slot."""

from __future__ import annotations

import threading
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby

import torch
import xxhash

from expert_store.arena import HostArena, Weights, page_aligned, slot_views
from expert_store.catalog import (
    Assemble,
    ExpertLayout,
    ExpertRecipe,
    PackedRecord,
    ParameterRecipe,
    ParameterSpec,
    PartOf,
    SlotEncoding,
    TensorSource,
    checksum_seed,
)
from expert_store.errors import ChecksumError
from expert_store.io.reader import Done, Part, Priority
from expert_store.io.tensor_reads import as_tensor
from expert_store.keys import ExpertKey
from expert_store.sources.base import PAGE_BYTES, Bytes, Piece, Source
from expert_store.sources.open_sources import OpenSources
from expert_store.sources.parallel import are_files

HUGE_PAGE_BYTES = 2 << 20  # reads into whole ones are faster
PART_BYTES = 256 << 10  # smaller matrices are read together
KEPT_BYTES = 8 << 20  # of memory that a thread keeps between reads


@dataclass(eq=False)
class ExpertRead:
    """One expert to be read into one slot, as a ``ReadJob``."""

    key: ExpertKey
    recipe: ExpertRecipe
    sources: OpenSources
    arena: HostArena
    slot: int
    done: Done
    priority: Priority = Priority.DEMAND
    encoding: SlotEncoding | None = None

    def __str__(self) -> str:
        return str(self.key)

    def parts(self) -> list[Part]:
        """Return the read of each matrix if they are large and on a disk, else one read.

        A part raises CheckpointError if a source can't be read, and ChecksumError if a record's bytes are not those
        that were packed.
        """
        if self.encoding is not None:
            return [self._read_encoded]
        if isinstance(self.recipe, PackedRecord):
            return [partial(self._read_record, self.recipe, self.arena.bytes_of(self.slot))]
        parameters = self.arena.layout.parameters
        return [partial(self._read_slot, self.recipe, group) for group in _parted(self.recipe, parameters)]

    def _read_slot(
        self, recipe: Mapping[str, ParameterRecipe], parameters: Sequence[ParameterSpec], scratch: Bytes
    ) -> None:
        slot = _Target(self.arena.layout, self.arena.bytes_of(self.slot), self.arena.weights(self.slot))
        self._read_parameters(recipe, parameters, slot, scratch)

    def _read_encoded(self, scratch: Bytes) -> None:
        assert self.encoding is not None
        stored = self.encoding.stored
        raw = _own_memory("stored", stored.slot_bytes)
        tensors = slot_views(stored, torch.from_numpy(raw))  # type: ignore[no-untyped-call,unused-ignore]
        if isinstance(self.recipe, PackedRecord):
            self._read_record(self.recipe, raw, scratch)
        else:
            self._read_parameters(self.recipe, stored.parameters, _Target(stored, raw, tensors), scratch)
        self.encoding.encode(tensors, self.arena.weights(self.slot))

    def _read_record(self, record: PackedRecord, target: Bytes, scratch: Bytes) -> None:
        source = record.extent.source
        for _ in range(2):  # a bit flipped in transfer is right the second time, one on the disk is not
            self.sources[source].read([Piece(record.extent.offset, target)], scratch)
            found = xxhash.xxh3_64_intdigest(target.data, seed=checksum_seed(self.key))
            if found == record.checksum:
                return
        raise ChecksumError(
            f"the checksum of its record in {source.short_name} is {found:016x}, not {record.checksum:016x}; "
            "the file is damaged; copy it again, or pack the model again"
        )

    def _read_parameters(
        self,
        recipe: Mapping[str, ParameterRecipe],
        parameters: Sequence[ParameterSpec],
        into: _Target,
        scratch: Bytes,
    ) -> None:
        pieces: dict[Source, list[Piece]] = {}
        assembled: dict[Hashable, _Assembly] = {}
        for parameter in parameters:
            part, offset = recipe[parameter.name], into.layout.offsets[parameter.name]
            if part.assemble is not None:
                kind = part.assemble.make if isinstance(part.assemble, PartOf) else parameter.name
                assembly = assembled.get((kind, part.sources))
                if assembly is None:
                    assembly = assembled[kind, part.sources] = _Assembly(part.sources)
                assembly.parts[parameter.name] = part.assemble
                continue
            for source in part.sources:
                target = into.raw[offset : offset + source.extent.nbytes]
                offset += source.extent.nbytes
                pieces.setdefault(source.extent.source, []).append(Piece(source.extent.offset, target))
        for assembly, targets in zip(assembled.values(), _targets(assembled.values()), strict=True):
            assembly.targets = [piece.target for piece in targets]
            for source, piece in zip(assembly.sources, targets, strict=True):
                pieces.setdefault(source.extent.source, []).append(piece)
        for each, parts in pieces.items():
            opened = self.sources[each]
            opened.read(parts, scratch)
            opened.refuse_changed()  # unlike records, these bytes have no checksum
        for assembly in assembled.values():
            assembly.write(into.weights)


@dataclass(frozen=True)
class _Target:
    """The memory of an expert in a layout: its bytes, and its tensors, which are views of them."""

    layout: ExpertLayout
    raw: Bytes
    weights: Weights


def _parted(
    recipe: Mapping[str, ParameterRecipe], parameters: Sequence[ParameterSpec]
) -> list[Sequence[ParameterSpec]]:
    """Divide parameters into groups that are read apart, each of some sources alone."""
    groups: list[Sequence[ParameterSpec]] = []
    seen: set[tuple[TensorSource, ...]] = set()
    for sources, same in groupby(parameters, lambda parameter: recipe[parameter.name].sources):
        nbytes = sum(source.extent.nbytes for source in sources)
        if sources in seen or nbytes < PART_BYTES or not are_files(source.extent.source for source in sources):
            return [parameters]
        seen.add(sources)
        groups.append(tuple(same))
    return groups


@dataclass(eq=False)
class _Assembly:
    """Parameters that are made of the same sources, and the memory that these are read into.

    All are parts that one function makes, or there is one parameter.
    """

    sources: tuple[TensorSource, ...]
    parts: dict[str, Assemble] = field(default_factory=dict)  # by parameter
    targets: list[Bytes] = field(default_factory=list)

    def write(self, weights: Weights) -> None:
        """Write the parameters to a slot."""
        read = [as_tensor(raw, source) for raw, source in zip(self.targets, self.sources, strict=True)]
        parts = {name: part for name, part in self.parts.items() if isinstance(part, PartOf)}
        if parts:
            make = next(iter(parts.values())).make
            make(read, {part.name: weights[name] for name, part in parts.items()})
            return
        for name, assemble in self.parts.items():
            weights[name].copy_(assemble(read))


def _targets(assemblies: Collection[_Assembly]) -> Iterator[list[Piece]]:
    """Yield a piece of memory for each source of some assemblies, with pages of its own, valid until the next call."""
    nbytes = sum(_pages(source) for assembly in assemblies for source in assembly.sources)
    memory, begin = _own_memory("sources", nbytes), 0
    for assembly in assemblies:
        pieces = []
        for source in assembly.sources:
            pages = memory[begin : begin + _pages(source)]
            begin += len(pages)
            within = source.extent.offset % PAGE_BYTES
            pieces.append(Piece(source.extent.offset, pages[within : within + source.extent.nbytes], pages))
        yield pieces


def _pages(source: TensorSource) -> int:
    """Bytes of the pages that hold a source, wherever it begins, as whole pages are read."""
    return -(-source.extent.nbytes // PAGE_BYTES) * PAGE_BYTES + PAGE_BYTES


_threads = threading.local()


def _own_memory(use: str, nbytes: int) -> Bytes:
    """Return memory of this thread, which its next call for this use may return again, if it is small."""
    known: Bytes | None = getattr(_threads, use, None)
    if known is None or len(known) < nbytes:
        known = page_aligned(-(-max(nbytes, 1) // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES)
        if nbytes <= KEPT_BYTES:  # new pages take the system as long as a copy
            setattr(_threads, use, known)
    return known[:nbytes]
