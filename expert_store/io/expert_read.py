"""The read of one expert into one slot."""

from __future__ import annotations

import threading
from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
import xxhash

from expert_store.arena import HostArena, Weights, page_aligned, slot_views
from expert_store.catalog import (
    Assemble,
    ExpertLayout,
    ExpertRecipe,
    PackedRecord,
    ParameterRecipe,
    PartOf,
    SlotEncoding,
    TensorSource,
    checksum_seed,
)
from expert_store.errors import ChecksumError
from expert_store.io.reader import Done, Priority
from expert_store.io.tensor_reads import as_tensor
from expert_store.keys import ExpertKey
from expert_store.sources.base import PAGE_BYTES, Bytes, Piece, Source
from expert_store.sources.open_sources import OpenSources

HUGE_PAGE_BYTES = 2 << 20  # reads into whole ones are faster
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

    def read(self, scratch: Bytes) -> None:
        """Fill the slot.

        Raises:
            CheckpointError: a source can't be read.
            ChecksumError: a record's bytes are not those that were packed.
        """
        weights = self.arena.weights(self.slot)
        if self.encoding is None:
            self._read(self.arena.layout, self.arena.bytes_of(self.slot), weights, scratch)
            return
        stored = self.encoding.stored
        raw = _own_memory("stored", stored.slot_bytes)
        tensors = slot_views(stored, torch.from_numpy(raw))  # type: ignore[no-untyped-call,unused-ignore]
        self._read(stored, raw, tensors, scratch)
        self.encoding.encode(tensors, weights)

    def _read(self, layout: ExpertLayout, raw: Bytes, weights: Weights, scratch: Bytes) -> None:
        """Read the expert in a layout; ``weights`` are the tensors that ``raw`` holds."""
        if isinstance(self.recipe, PackedRecord):
            self._read_record(self.recipe, raw, scratch)
        else:
            self._read_parameters(self.recipe, layout, raw, weights, scratch)

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
        layout: ExpertLayout,
        raw: Bytes,
        weights: Weights,
        scratch: Bytes,
    ) -> None:
        pieces: dict[Source, list[Piece]] = {}
        assembled: dict[Hashable, _Assembly] = {}
        for parameter in layout.parameters:
            part, offset = recipe[parameter.name], layout.offsets[parameter.name]
            if part.assemble is not None:
                kind = part.assemble.make if isinstance(part.assemble, PartOf) else parameter.name
                assembly = assembled.get((kind, part.sources))
                if assembly is None:
                    assembly = assembled[kind, part.sources] = _Assembly(part.sources)
                assembly.parts[parameter.name] = part.assemble
                continue
            for source in part.sources:
                target = raw[offset : offset + source.extent.nbytes]
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
            assembly.write(weights)


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
