"""A registry of adapters in real files, with memory for few of them."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from expert_store.catalog import ExpertLayout, ParameterSpec
from server.engine.sequence_weights import SequenceWeights
from server.model.lora.pages import PARAMETER
from server.model.lora.targets import LoraTargets
from server.weights.adapter_memory import AdapterMemory
from server.weights.adapter_registry import AdapterRegistry
from server.weights.adapter_store import AdapterStore
from server.weights.directory import Directory
from tests.adapters import write_adapter

CPU = torch.device("cpu")
NUM_LAYERS = 8
TARGETS = LoraTargets(
    {f"model.layers.{layer}.self_attn.q_proj": (32, 32) for layer in range(NUM_LAYERS)}, {}, {}, {}, {}
)
LAYOUT = ExpertLayout((ParameterSpec(PARAMETER, torch.uint8, (4096,)),))  # holds the tensors of 4 layers


@dataclass
class Rig:
    """A registry with room for ``NUM_SLOTS`` pages, and a clock that is set."""

    folder: Path
    num_slots: int = 2
    now: float = 0.0

    def __post_init__(self) -> None:
        self.woken = threading.Semaphore(0)
        self.store = AdapterStore(LAYOUT, self.num_slots * LAYOUT.slot_bytes, CPU)
        self.dropped: list[str] = []
        self.memory = AdapterMemory(self.store, self.woken.release, self.dropped.append, lambda: self.now)
        self.registry = AdapterRegistry(TARGETS, self.memory, self.folder, ["base"])
        self.directory = Directory("fake", adapters=(self.registry, self.memory))

    def load(self, name: str, value: float = 1.0, num_layers: int = 1, *, replace: bool = False) -> None:
        write_adapter(self.folder / name, value, num_layers=num_layers)
        self.registry.load(name, name, replace=replace)

    def select(self, name: str | None, *arguments: Any, **options: Any) -> SequenceWeights:
        """Return the weights of a request, none of whose sequences has begun."""
        names = self.directory.resolve(name, *arguments, **options)
        assert names is not None
        return self.directory.select(names)

    def begin(self, name: str) -> SequenceWeights:
        """Return the weights of a sequence that has begun."""
        weights = self.select(name)
        weights.begin()
        return weights

    def wait_for(self, *all_weights: SequenceWeights) -> None:
        """Acquire all, as soon as they are loaded."""
        for weights in all_weights:
            while not weights.acquire():
                assert self.woken.acquire(timeout=10), "nothing was loaded"

    def wait_until_resident(self, weights: SequenceWeights) -> None:
        self.wait_for(weights)
        weights.release()
