"""The read of one expert into one slot."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import numpy as np
import xxhash

from expert_store.arena import HostArena, Weights
from expert_store.catalog import (
    Assemble,
    ExpertRecipe,
    PackedRecord,
    ParameterRecipe,
    PartOf,
    TensorSource,
    checksum_seed,
)
from expert_store.errors import ChecksumError
from expert_store.io.reader import Done, Priority
from expert_store.io.tensor_reads import as_tensor
from expert_store.keys import ExpertKey
from expert_store.sources.base import Bytes, Piece, Source
from expert_store.sources.open_sources import OpenSources


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

    def __str__(self) -> str:
        return str(self.key)

    def read(self, scratch: Bytes) -> None:
        """Fill the slot.

        Raises:
            CheckpointError: a source can't be read.
            ChecksumError: a record's bytes are not those that were packed.
        """
        if isinstance(self.recipe, PackedRecord):
            self._read_record(self.recipe, scratch)
        else:
            self._read_parameters(self.recipe, scratch)

    def _read_record(self, record: PackedRecord, scratch: Bytes) -> None:
        target, source = self.arena.bytes_of(self.slot), record.extent.source
        for _ in range(2):  # a bit flipped in transfer is right the second time, one on the disk is not
            self.sources[source].read([Piece(record.extent.offset, target)], scratch)
            found = xxhash.xxh3_64_intdigest(target.data, seed=checksum_seed(self.key))
            if found == record.checksum:
                return
        raise ChecksumError(
            f"the checksum of its record in {source.short_name} is {found:016x}, not {record.checksum:016x}; "
            "the file is damaged; copy it again, or pack the model again"
        )

    def _read_parameters(self, recipe: Mapping[str, ParameterRecipe], scratch: Bytes) -> None:
        slot, layout = self.arena.bytes_of(self.slot), self.arena.layout
        pieces: dict[Source, list[Piece]] = {}
        assembled: dict[Hashable, _Assembly] = {}
        for parameter in layout.parameters:
            part, offset = recipe[parameter.name], layout.offsets[parameter.name]
            if part.assemble is not None:
                kind = part.assemble.make if isinstance(part.assemble, PartOf) else parameter.name
                assembly = assembled.setdefault((kind, part.sources), _Assembly(part.sources))
                assembly.parts[parameter.name] = part.assemble
                continue
            for source in part.sources:
                target = slot[offset : offset + source.extent.nbytes]
                offset += source.extent.nbytes
                pieces.setdefault(source.extent.source, []).append(Piece(source.extent.offset, target))
        for assembly in assembled.values():
            for source, target in zip(assembly.sources, assembly.targets, strict=True):
                pieces.setdefault(source.extent.source, []).append(Piece(source.extent.offset, target))
        for each, parts in pieces.items():
            opened = self.sources[each]
            opened.read(parts, scratch)
            opened.refuse_changed()  # unlike records, these bytes have no checksum
        for assembly in assembled.values():
            assembly.write(self.arena.weights(self.slot))


@dataclass(eq=False)
class _Assembly:
    """Parameters that are made of the same sources, and the memory that these are read into.

    All are parts that one function makes, or there is one parameter.
    """

    sources: tuple[TensorSource, ...]
    parts: dict[str, Assemble] = field(default_factory=dict)  # by parameter
    targets: list[Bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.targets = [np.empty(source.extent.nbytes, dtype=np.uint8) for source in self.sources]

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
