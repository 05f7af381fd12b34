"""Of a model's name: what it is made of, as far as its files tell, and what of it fits the budgets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch

from expert_store import (
    UNCHANGED,
    ExpertCatalog,
    find_shards,
    is_header_alone,
    is_pack,
    open_pack,
    read_index,
    share_slots,
)
from server.kernels.native.available import choose_level
from server.memory.budget import host_budget
from server.memory.plan import PROCESS_BYTES, MemoryPlan, ModelNeeds, least_budget, nothing_fits, plan_memory
from server.memory.step import StepShape
from server.model.checkpoint import find_local
from server.model.checkpoint_map import map_checkpoint, missing_parameters
from server.model.config_catalog import catalog_of_shapes
from server.model.dtype import compute_dtype
from server.model.errors import incomplete
from server.model.loading import read_config
from server.model.outline import Outline, outline
from server.model.packing import map_pack, packed_matrices
from server.model.states import states_bytes
from server.settings import ServeSettings

from .hub import find_hub_model

Source = Literal["checkpoint", "packed", "headers", "config"]


@dataclass(frozen=True)
class Survey:
    """What a model is made of."""

    name: str
    source: Source  # what was at hand
    outline: Outline
    catalog: ExpertCatalog
    num_unused: int  # tensors in the files that the model has no place for
    trunk_format: str = UNCHANGED  # of its linear layers

    @property
    def has_experts(self) -> bool:
        """Whether the experts' bytes are here, to be read."""
        return self.source in {"checkpoint", "packed"}

    @property
    def num_experts(self) -> int:
        return sum(self.catalog.layouts.values())

    @property
    def active_expert_bytes(self) -> int:
        """Of a token."""
        return sum(k * self.catalog.layout(layer).slot_bytes for layer, k in self.outline.top_k.items())


@dataclass(frozen=True)
class Fit:
    """What fits where."""

    memory: MemoryPlan
    host_slots: int
    device_slots: int  # 0 where there is no device tier

    @property
    def is_cuda(self) -> bool:
        return self.memory.free.is_cuda

    @property
    def holds_trunk(self) -> bool:
        return self.memory.free.device > 0


def survey(model: str | None, settings: ServeSettings, device: torch.device) -> Survey:
    """Look at a local checkpoint, a packed folder, headers or a config alone, or what the hub tells of a model.

    Raises:
        ModelError, CheckpointError: the model could not be served either, or can't be found.
    """
    found = find_local(model)
    if found is not None:
        return _survey_folder(*found, settings, device)
    assert model is not None
    with TemporaryDirectory(prefix="greenroom-") as scratch:
        folder = Path(scratch) / Path(model).name  # by whose name a refusal tells of the model
        folder.mkdir()
        return _survey_folder(find_hub_model(model, settings.revision, folder), model, settings, device)


def fit(found: Survey, settings: ServeSettings, device: torch.device) -> Fit:
    """Share out the memory as serving does; nothing fits beside a trunk that does not.

    Raises:
        SettingsError: a budget or limit does not suit the model.
    """
    budget, needs = host_budget(settings), needs_of(found, settings, device)
    if least_budget(settings, needs, device, PROCESS_BYTES) > budget:
        return Fit(nothing_fits(needs, budget), 0, 0)
    return count_slots(found, plan_memory(settings, needs, device, budget, PROCESS_BYTES))


def count_slots(found: Survey, plan: MemoryPlan) -> Fit:
    """Count the experts that have room in the tiers of a plan."""
    host, on_device = (
        sum(share_slots(found.catalog, nbytes).values()) if nbytes else 0
        for nbytes in (plan.host_bytes, plan.device_bytes)
    )
    return Fit(plan, host, on_device)


def needs_of(found: Survey, settings: ServeSettings, device: torch.device) -> ModelNeeds:
    """Describe a model to the memory's planner; native kernels are taken to run the layers wherever there are some."""
    shape, catalog = found.outline, found.catalog
    is_native = device.type == "cpu" and shape.solo_reason is None and choose_level(settings.kernels) is not None
    step = StepShape.of(
        shape.model.config.get_text_config(),
        shape.kv_groups,
        catalog.num_experts,
        len(catalog.layers),
        max(shape.top_k.values()),
        shape.dtype.itemsize,
        is_native=is_native,
    )
    return ModelNeeds(
        catalog,
        shape.trunk_bytes,
        max(shape.top_k.values()),
        shape.kv_groups,
        shape.max_model_len,
        states_bytes(shape.states),
        shape.solo_reason is None,
        step,
    )


def _survey_folder(folder: Path, name: str, settings: ServeSettings, device: torch.device) -> Survey:
    config = read_config(folder)
    dtype, length = compute_dtype(settings.dtype, config, device), settings.max_model_len
    if is_pack(folder):
        pack = open_pack(folder)
        shape = outline(config, dtype, length, packed_matrices(pack))
        return Survey(name, "packed", shape, map_pack(shape.model, pack).catalog, 0, pack.manifest.trunk)
    shape = outline(config, dtype, length)
    if not any(folder.glob("*.safetensors")):
        return Survey(name, "config", shape, catalog_of_shapes(shape.model), 0)
    shards = find_shards(folder)
    are_headers = all(is_header_alone(path) for path in shards)
    places = map_checkpoint(shape.model, read_index(shards, is_whole=not are_headers))
    missing = missing_parameters(shape.model, places.trunk)
    if missing:
        raise incomplete(folder.name, missing)
    return Survey(name, "headers" if are_headers else "checkpoint", shape, places.catalog, len(places.unused))
