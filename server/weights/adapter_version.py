"""AdapterVersion and GateVersion: one registered state of an adapter or of a mixture, and who uses it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple

from expert_store import ExpertKey, Lease
from server.engine.interface import AdapterExamples, ChoiceByToken
from server.model.lora.gate_files import GateFiles, Vectors
from server.model.lora.peft_files import AdapterFiles
from server.model.lora_adapter import LoraAdapter

SEPARATOR = ":"  # between a mixture and its adapter; in no name that can be registered
LAYER = 0  # the one layer of the store; its "experts" are pages

_numbers = itertools.count(1)


class PlacedAdapter(NamedTuple):
    """An adapter whose matrices are views of pages at some addresses."""

    addresses: tuple[int, ...]
    lora: LoraAdapter


@dataclass(eq=False)
class AdapterVersion:
    """An adapter as it was when it was registered. ``AdapterMemory`` guards the fields that change.

    Args:
        gate: the vectors by which a trained gate scores it; None if it is part of no mixture.
    """

    name: str
    files: AdapterFiles
    examples: AdapterExamples = field(default_factory=AdapterExamples)
    number: int = field(default_factory=lambda: next(_numbers))  # unique in this process
    gate: Vectors | None = None
    is_open: bool = False  # the store knows its pages
    is_retired: bool = False  # its name was unloaded, or has another version now
    num_sequences: int = 0  # sequences that have begun and not ended
    num_total: int = 0  # sequences that have begun since it was registered
    num_uses: int = 0  # running sequences, and loads on behalf of waiting ones
    is_loading: bool = False
    lease: Lease | None = None  # holds its pages while it is used
    lora: LoraAdapter | None = None  # while it is used and loaded
    last: PlacedAdapter | None = None  # what it was when it was used last, of use while its pages stay there
    error: Exception | None = None  # the error of its last load, until a sequence has seen it
    by_token: ClassVar[ChoiceByToken | None] = None  # it has no gate

    @property
    def variant(self) -> str:
        """Its name in the store and in hashes of prefixes."""
        return f"{self.number}:{self.name}"

    @property
    def num_pages(self) -> int:
        return len(self.files.checksums)

    @property
    def folder(self) -> Path:
        return self.files.folder

    @property
    def parts(self) -> Sequence[AdapterVersion]:
        """The adapters that it consists of: itself."""
        return (self,)

    @property
    def keys(self) -> list[ExpertKey]:
        return [ExpertKey(LAYER, page, self.variant) for page in range(self.num_pages)]


@dataclass(eq=False)
class GateVersion:
    """A mixture of adapters as it was when it was registered, with the gate that chooses them for each token.

    Args:
        parts: its adapters, which no request can name; their names are ``MIXTURE:ADAPTER``.
    """

    name: str
    files: GateFiles
    examples: AdapterExamples = field(default_factory=AdapterExamples)
    number: int = field(default_factory=lambda: next(_numbers))  # as that of adapters
    parts: Sequence[AdapterVersion] = field(init=False)

    def __post_init__(self) -> None:
        named = zip(self.files.config.adapters, self.files.adapters, self.files.vectors, strict=True)
        self.parts = tuple(
            AdapterVersion(f"{self.name}{SEPARATOR}{name}", files, gate=gate) for name, files, gate in named
        )

    @property
    def folder(self) -> Path:
        return self.files.folder

    @property
    def num_total(self) -> int:
        """Sequences that have begun since it was registered."""
        return self.parts[0].num_total

    @property
    def num_pages(self) -> int:
        return sum(part.num_pages for part in self.parts)

    @property
    def by_token(self) -> ChoiceByToken:
        """The choice that its gate makes."""
        config = self.files.config
        return ChoiceByToken(tuple(part.name for part in self.parts), config.top_k, config.temperature, self.name)


Version = AdapterVersion | GateVersion
