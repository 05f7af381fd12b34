"""Sizes and shapes of a model, read from its files without loading the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch

from expert_store import (
    UNCHANGED,
    ExpertCatalog,
    FileSource,
    is_header_only,
    read_index,
)
from server.device import is_gpu
from server.inspection.hub_metadata import open_hub_model
from server.kernels.native.available import OFF, kernel_level
from server.kernels.native.library import Kernels
from server.model.checkpoint.checkpoint import Checkpoint
from server.model.checkpoint.config_catalog import catalog_from_config
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.checkpoint.gguf import pack_file
from server.model.checkpoint.locate import find_local, find_original
from server.model.checkpoint.pack_checkpoint import PackCheckpoint
from server.model.checkpoint.remote.place import RemotePlace
from server.model.checkpoint.tensor_map import check_trunk_tensors, map_checkpoint
from server.model.coded.experts import code_experts
from server.model.contradictions import naming_keys
from server.model.dtype import compute_dtype
from server.model.from_config.program import program_of_config
from server.model.from_config.shapes import ModelShapes, infer_shapes
from server.model.model_building import build_model, empty_experts
from server.model.opening.gguf_checkpoint import GgufCheckpoint, trunk_types
from server.model.opening.open_checkpoint import open_checkpoint
from server.model.program import ModelProgram
from server.model.recurrent.states import StateShapes, as_native
from server.settings import ServeSettings

Source = Literal["checkpoint", "packed", "gguf", "gguf-headers", "headers", "config"]
WITH_WEIGHTS = {"checkpoint", "packed", "gguf"}


@dataclass(frozen=True)
class ModelSummary:
    """Sizes and shapes of a model, and the files they were read from."""

    name: str
    source: Source
    outline: ModelShapes
    catalog: ExpertCatalog  # the experts as the files have them
    kept: ExpertCatalog  # and as `serve` keeps them in memory
    program: ModelProgram  # what runs where
    num_unused: int  # tensors in the files that the model does not use
    trunk_format: str = UNCHANGED  # weight format of the trunk's linear layers
    notes: tuple[str, ...] = ()  # what of the files is not used

    @property
    def has_experts(self) -> bool:
        """True if the experts' weights are on this machine."""
        return self.source in WITH_WEIGHTS

    @property
    def num_experts(self) -> int:
        return sum(self.catalog.layouts.values())

    @property
    def states(self) -> StateShapes:
        """The recurrent states of one sequence, as what runs the model keeps them."""
        return as_native(self.outline.states) if self.program.has_native else self.outline.states

    @property
    def active_expert_bytes(self) -> int:
        """Bytes of the experts that one token uses, in the files."""
        return self._active_bytes(self.catalog)

    @property
    def active_kept_bytes(self) -> int:
        """Bytes of the experts that one token uses, in memory."""
        return self._active_bytes(self.kept)

    def _active_bytes(self, catalog: ExpertCatalog) -> int:
        return sum(k * catalog.layout(layer).slot_bytes for layer, k in self.outline.top_k.items())


def summarise_model(model: str | None, settings: ServeSettings, device: torch.device) -> ModelSummary:
    """Summarise a local checkpoint, a packed folder, headers or a config without weights, or a model of the hub.

    Raises:
        ModelError, CheckpointError: the model can't be found, or can't be served.
        SettingsError: ``--kernels`` names a level that this machine can't run.
    """
    with open_without_weights(model, settings.revision, find_original(settings.config_from)) as (checkpoint, name):
        return _summarise(checkpoint, name, settings, device)


@contextmanager
def open_without_weights(
    model: str | None, revision: str | None = None, original: Path | RemotePlace | None = None
) -> Iterator[tuple[Checkpoint, str]]:
    """Open a model, of which a hub gives the config and the headers of tensors alone.

    Args:
        model: as users name it; None for the bundled one.
        revision: of the hub.
        original: folder of the model that a GGUF file was made from.

    Yields:
        The checkpoint and its name.

    Raises:
        ModelError, CheckpointError: the model can't be found.
    """
    found = find_local(model)
    if found is not None:
        place, name = found
        yield open_checkpoint(place, original), name
        return
    assert model is not None
    with TemporaryDirectory(prefix="greenroom-") as scratch:
        folder = Path(scratch) / Path(model).name  # error messages name the folder
        folder.mkdir()
        yield open_hub_model(model, revision, folder, original), model


def _summarise(checkpoint: Checkpoint, name: str, settings: ServeSettings, device: torch.device) -> ModelSummary:
    config, packed, length = checkpoint.read_config(), checkpoint.packed_matrices, settings.max_model_len
    dtype_of = partial(compute_dtype, settings.dtype, config, device)
    level = kernel_level(settings, device)
    kernels = None if level is None else Kernels(1, level)
    shape = infer_shapes(config, dtype_of(), length, packed, has_kernels=kernels is not None)
    source: Source = "checkpoint"
    num_unused, trunk_format = 0, str(UNCHANGED)
    if isinstance(checkpoint, FolderCheckpoint) and not checkpoint.has_shards:
        source, catalog = "config", catalog_from_config(shape.model)
    elif isinstance(checkpoint, PackCheckpoint):
        places = checkpoint.map(shape.model)
        source, catalog, trunk_format = "packed", places.catalog, checkpoint.pack.manifest.trunk
        if trunk_format == pack_file.FORMAT:
            trunk_format = trunk_types(places.packed)
    else:
        with naming_keys(shape.model):
            if isinstance(checkpoint, FolderCheckpoint) and all(map(is_header_only, checkpoint.shards())):
                source = "headers"
                places = map_checkpoint(shape.model, read_index(checkpoint.shards(), has_data=False))
            else:
                places = checkpoint.map(shape.model)
            check_trunk_tensors(checkpoint.name, shape.model, places)
        catalog, num_unused = places.catalog, len(places.unused)
        if isinstance(checkpoint, GgufCheckpoint):
            source = "gguf" if isinstance(catalog.sources[0], FileSource) else "gguf-headers"
            trunk_format = trunk_types(places.packed)
    program = program_of_config(
        config,
        dtype_of(is_native=True),
        kernels,
        catalog,
        length,
        device=device,
        triton_device=device if is_gpu(device) and settings.kernels != OFF else None,
    )
    dtype = dtype_of(is_native=program.is_native)
    if dtype != shape.dtype or program.is_sequential != (shape.sequential_reason is not None):
        shape = infer_shapes(config, dtype, length, packed, has_kernels=program.is_native)
    kept = catalog
    can_code = kernels is not None and kernels.gains_from_codes and settings.device_expert_memory.is_auto
    if can_code and source in WITH_WEIGHTS:
        kept = code_experts(catalog, empty_experts(build_model(config, dtype)), dtype, kernels)
    return ModelSummary(
        name,
        source,
        shape,
        catalog=catalog,
        kept=kept,
        program=program,
        num_unused=num_unused,
        trunk_format=trunk_format,
        notes=tuple(checkpoint.notes()),
    )
