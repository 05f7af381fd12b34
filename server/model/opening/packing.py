"""Prepares a checkpoint for packing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from expert_store import (
    UNCHANGED,
    ExpertCatalog,
    ExpertKey,
    ExpertLayout,
    FileName,
    MadeTensors,
    PackedLayer,
    PackedRecord,
    PackSource,
    ParameterRecipe,
    ParameterSpec,
    Weights,
    read_tensor,
)
from server.kernels.expert import PLAIN, dequantised, in_module_order, is_in_parts, transposed_names
from server.model.checkpoint.checkpoint import Checkpoint
from server.model.checkpoint.expert_parameters import parameter_shapes
from server.model.checkpoint.gguf import pack_file
from server.model.checkpoint.pack_checkpoint import PackCheckpoint
from server.model.checkpoint.pack_tensors import numbered_experts
from server.model.checkpoint.packed_trunk import TrunkFormat, quantised_linears
from server.model.checkpoint.slot_matrices import find_matrices
from server.model.checkpoint.tensor_map import CheckpointMap
from server.model.checkpoint.weight_formats import StoredFormat, encode, packed_layout
from server.model.errors import ModelError
from server.model.opening.gguf_checkpoint import GgufCheckpoint
from server.model.quantised.matrix import StoredTensor, stored_parts


def pack_source(
    model: PreTrainedModel, checkpoint: Checkpoint, name: str, weights: StoredFormat, trunk: TrunkFormat = UNCHANGED
) -> PackSource:
    """Describe the contents of a pack of a checkpoint.

    Args:
        model: the model on the meta device, with its experts' parameters.
        name: the name that the pack is served under.
        weights: the format of the experts; those of a GGUF file may stay unchanged.
        trunk: the format of the trunk's linear layers.

    Raises:
        ModelError: the checkpoint can't be packed.
        CheckpointError: its files are damaged or incomplete.
    """
    tensors, files = _contents(model, checkpoint, weights, trunk)
    computed = {
        name: _computed(name, source, torch.float32 if trunk == UNCHANGED else torch.bfloat16)
        for name, source in tensors.trunk.items()
        if isinstance(checkpoint, GgufCheckpoint) and isinstance(source, StoredTensor)  # as no hub's checkpoint has it
    }
    kept = {name: pack_file.made_tensors(name, matrix) for name, matrix in tensors.packed.items()}
    quantised = quantised_linears(model, tensors.trunk, trunk) if trunk != UNCHANGED else {}
    modules = {number: module for number, _, module in numbered_experts(model)}

    def encode_expert(key: ExpertKey) -> Weights:
        recipe = tensors.catalog.recipe(key)
        if isinstance(recipe, PackedRecord):
            raise ModelError(f"{key} is packed already")
        weights_read = _read_expert(recipe, tensors.catalog.layout(key.layer))
        if weights == UNCHANGED:
            return weights_read
        parameters = _as_in_module(weights_read, modules[key.layer])
        try:
            return encode(parameters, transposed_names(modules[key.layer]), weights)
        except ModelError as error:
            raise ModelError(f"{key}: {error}") from error

    stored = {name: stored_parts(source) for name, source in tensors.trunk.items()}
    sources = {part.extent.source for parts in stored.values() for part in parts}
    sources.update(part.extent.source for matrix in tensors.packed.values() for part in matrix.sources)
    layouts = {number: _layout(number, module, tensors.catalog, weights) for number, module in modules.items()}
    return PackSource(
        model=name,
        weights=weights,
        layers={number: PackedLayer(layouts[number], module.num_experts) for number, module in modules.items()},
        encode=encode_expert,
        trunk=[part for name, parts in stored.items() if name not in {**computed, **quantised} for part in parts],
        made=list({**computed, **quantised, **kept}.values()),
        trunk_format=pack_file.FORMAT if kept else trunk,
        files=files,
        shards=list(sources.union(tensors.catalog.sources)),
    )


def _contents(
    model: PreTrainedModel, checkpoint: Checkpoint, weights: StoredFormat, trunk: TrunkFormat
) -> tuple[CheckpointMap, Mapping[FileName, bytes]]:
    """Return the tensors of a checkpoint, and the small files of a pack of it."""
    if isinstance(checkpoint, PackCheckpoint):
        raise ModelError(f"{checkpoint.location} is packed already; give the checkpoint that it was made from")
    if isinstance(checkpoint, GgufCheckpoint):
        tensors = checkpoint.map(model) if trunk == UNCHANGED else checkpoint.map_unpacked(model)
        types = pack_file.write_types(checkpoint.describe().weights, tensors.packed)
        return tensors, {**checkpoint.small_files(), pack_file.NAME: types}
    if weights == UNCHANGED:
        raise ModelError(f"{checkpoint.location} is no GGUF file; give --weights bfloat16, int8 or int4")
    return checkpoint.map(model), checkpoint.small_files()


def _layout(number: int, module: Any, catalog: ExpertCatalog, weights: StoredFormat) -> ExpertLayout:
    """Return the layout of a layer's experts in the pack."""
    shapes, transposed = parameter_shapes(module), transposed_names(module)
    if weights != UNCHANGED:
        return packed_layout(shapes, transposed, weights)
    layout = catalog.layout(number)
    if find_matrices(layout, shapes, transposed) is None:
        raise ModelError(f"the experts in layer {number} can't stay unchanged; pack them with --weights bfloat16")
    return layout


def _computed(name: str, source: StoredTensor, rounded: torch.dtype) -> MadeTensors:
    """Return a parameter of the trunk that is written as it is computed from the tensors of a GGUF file.

    Conversions of matrices only move numbers, so that they keep the dtype of plain ones.

    Args:
        rounded: the dtype of matrices that are quantised in the file.
    """
    stored = {part.dtype for part in source.sources}
    plain = stored.pop() if len(stored) == 1 and stored < PLAIN else rounded
    dtype = plain if len(source.shape) > 1 else torch.float32
    return MadeTensors((ParameterSpec(name, dtype, source.shape),), lambda: {name: source.read(dtype).to(dtype)})


def _read_expert(recipe: Mapping[str, ParameterRecipe], layout: ExpertLayout) -> Weights:
    """Read an expert's tensors in the layout of its slot."""
    parameters = {}
    for spec in layout.parameters:
        part = recipe[spec.name]
        tensors = [read_tensor(source) for source in part.sources]
        if part.assemble is None:
            parameters[spec.name] = torch.cat([tensor.flatten() for tensor in tensors]).view(spec.shape)
        else:
            parameters[spec.name] = part.assemble(tensors).to(spec.dtype)
    return parameters


def _as_in_module(weights: Weights, module: Any) -> Weights:
    """Convert a slot's tensors to the module's parameters, dequantising quantised ones."""
    parameters, transposed = {}, transposed_names(module)
    for name in parameter_shapes(module):
        matrix, owner = dequantised(weights, name), name.removesuffix("_bias")
        value = weights[name] if matrix is None else matrix
        if is_in_parts(weights, owner):
            value = in_module_order(module, owner, value, 0)
        parameters[name] = value.mT if matrix is not None and name in transposed else value
    return parameters
