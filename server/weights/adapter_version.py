"""AdapterVersion: one registered state of an adapter, and who uses it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import NamedTuple

from expert_store import ExpertKey, Lease
from server.engine.interface import RoutingExamples
from server.model.lora.adapter import LoraAdapter
from server.model.lora.peft_files import AdapterFiles

LAYER = 0  # the one layer of the store; its "experts" are pages

_numbers = itertools.count(1)


class PlacedAdapter(NamedTuple):
    """An adapter whose matrices are views of pages at some addresses."""

    addresses: tuple[int, ...]
    lora: LoraAdapter


@dataclass(eq=False)
class AdapterVersion:
    """An adapter as it was when it was registered. ``AdapterMemory`` guards the fields that change."""

    name: str
    files: AdapterFiles
    routing: RoutingExamples = field(default_factory=RoutingExamples)
    number: int = field(default_factory=lambda: next(_numbers))  # unique in this process
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

    @property
    def variant(self) -> str:
        """Its name in the store and in hashes of prefixes."""
        return f"{self.number}:{self.name}"

    @property
    def num_pages(self) -> int:
        return len(self.files.checksums)

    @property
    def keys(self) -> list[ExpertKey]:
        return [ExpertKey(LAYER, page, self.variant) for page in range(self.num_pages)]
