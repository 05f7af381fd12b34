"""A server with a fake model that notes the weights of each step, and with adapters in real files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from expert_store.catalog import ExpertLayout, ParameterSpec
from server.api.core.requests.loaded_model import LoadedModel
from server.api.core.service.service import Service
from server.engine.text.codec import Codec
from server.model.chunk_weights import ChunkWeights
from server.model.lora.pages import PARAMETER
from server.model.lora.targets import LoraTargets
from server.model.step import SequenceChunk, StepOutput
from server.weights.adapter_memory import AdapterMemory
from server.weights.adapter_registry import AdapterRegistry
from server.weights.adapter_store import AdapterStore
from server.weights.directory import Directory
from tests.adapters import write_adapter
from tests.server.engine.fakes import Rig
from tests.server.live.conftest import LiveServer, serving_model

TARGETS = LoraTargets({"model.layers.0.self_attn.q_proj": (32, 32)}, {}, {}, {}, {})
LAYOUT = ExpertLayout((ParameterSpec(PARAMETER, torch.uint8, (4096,)),))


@dataclass
class AdapterRig:
    """The server, its adapters, and the weights of each step of a sequence."""

    live: LiveServer
    registry: AdapterRegistry
    used: list[ChunkWeights | None] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.live.port}"

    def last_used(self) -> dict[str, float]:
        """Return names and factors of the adapters that the last request ran with."""
        weights = self.used[-1]
        return {} if weights is None else {each.adapter.name: each.weight for each in weights.adapters}


@contextmanager
def serving_adapters(
    codec: Codec, folder: Path, service: Service, *, num_slots: int, loaded: Sequence[str] = ()
) -> Iterator[AdapterRig]:
    """Serve with memory for ``num_slots`` adapters, some of which are written to ``folder`` and loaded at first."""
    rig, used = Rig(), list[ChunkWeights | None]()
    run = rig.model.run

    def note_and_run(chunks: list[SequenceChunk]) -> StepOutput:
        used.extend(chunk.weights for chunk in chunks)
        return run(chunks)

    rig.model.run = note_and_run  # type: ignore[method-assign]
    store = AdapterStore(LAYOUT, num_slots * LAYOUT.slot_bytes, torch.device("cpu"))
    memory = AdapterMemory(store, rig.engine.wake)
    registry = AdapterRegistry(TARGETS, memory, folder, ["fake"])
    for name in loaded:
        write_adapter(folder / name)
        registry.load(name, name)
    rig.engine.start()
    directory = Directory("fake", adapters=(registry, memory))
    rig.find_weights = directory.select
    model = LoadedModel("fake", rig.engine, codec, adapters=registry, directory=directory)
    with serving_model(model, rig.engine, service=service) as live:
        yield AdapterRig(live, registry, used)
    rig.engine.stop()
    rig.blocks.check_integrity([])
    store.check_integrity()
    memory.close()
