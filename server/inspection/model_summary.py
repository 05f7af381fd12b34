"""Sizes and shapes of a model, read from its files without loading the weights."""

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
    is_header_only,
    read_index,
)
from server.inspection.hub_metadata import find_hub_model
from server.kernels.native.available import kernel_level
from server.model.checkpoint.config_catalog import catalog_from_config
from server.model.checkpoint.locate import find_local
from server.model.checkpoint.open_checkpoint import open_checkpoint
from server.model.checkpoint.pack_checkpoint import PackCheckpoint
from server.model.checkpoint.tensor_map import map_checkpoint, missing_parameters
from server.model.dtype import compute_dtype
from server.model.errors import incomplete
from server.model.model_shapes import ModelShapes, infer_shapes
from server.settings import ServeSettings

Source = Literal["checkpoint", "packed", "headers", "config"]


@dataclass(frozen=True)
class ModelSummary:
    """Sizes and shapes of a model, and the files they were read from."""

    name: str
    source: Source
    outline: ModelShapes
    catalog: ExpertCatalog
    num_unused: int  # tensors in the files that the model does not use
    trunk_format: str = UNCHANGED  # weight format of the trunk's linear layers

    @property
    def has_experts(self) -> bool:
        """True if the experts' weights are on this machine."""
        return self.source in {"checkpoint", "packed"}

    @property
    def num_experts(self) -> int:
        return sum(self.catalog.layouts.values())

    @property
    def active_expert_bytes(self) -> int:
        """Bytes of the experts that one token uses."""
        return sum(k * self.catalog.layout(layer).slot_bytes for layer, k in self.outline.top_k.items())


def summarise_model(model: str | None, settings: ServeSettings, device: torch.device) -> ModelSummary:
    """Summarise a local checkpoint, a packed folder, headers or a config without weights, or a model of the hub.

    Raises:
        ModelError, CheckpointError: the model can't be found, or can't be served.
        SettingsError: ``--kernels`` names a level that this machine can't run.
    """
    found = find_local(model)
    if found is not None:
        return _summarise_folder(*found, settings, device)
    assert model is not None
    with TemporaryDirectory(prefix="greenroom-") as scratch:
        folder = Path(scratch) / Path(model).name  # error messages name the folder
        folder.mkdir()
        return _summarise_folder(find_hub_model(model, settings.revision, folder), model, settings, device)


def _summarise_folder(folder: Path, name: str, settings: ServeSettings, device: torch.device) -> ModelSummary:
    checkpoint = open_checkpoint(folder)
    config = checkpoint.read_config()
    has_kernels, length = kernel_level(settings, device) is not None, settings.max_model_len
    dtype = compute_dtype(settings.dtype, config, device, has_kernels=has_kernels)
    shape = infer_shapes(config, dtype, length, checkpoint.packed_matrices())
    if isinstance(checkpoint, PackCheckpoint):
        return ModelSummary(
            name,
            "packed",
            shape,
            catalog=checkpoint.map(shape.model).catalog,
            num_unused=0,
            trunk_format=checkpoint.pack.manifest.trunk,
        )
    if not any(folder.glob("*.safetensors")):
        return ModelSummary(name, "config", shape, catalog_from_config(shape.model), 0)
    shards = find_shards(folder)
    are_headers = all(is_header_only(path) for path in shards)
    places = map_checkpoint(shape.model, read_index(shards, has_data=not are_headers))
    missing = missing_parameters(shape.model, places.trunk)
    if missing:
        raise incomplete(folder.name, missing)
    return ModelSummary(name, "headers" if are_headers else "checkpoint", shape, places.catalog, len(places.unused))
