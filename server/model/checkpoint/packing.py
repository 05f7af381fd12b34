"""Prepares a checkpoint for packing, and maps a packed model for loading."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from expert_store import (
    UNCHANGED,
    CheckpointError,
    ExpertKey,
    ExpertLayout,
    Pack,
    PackedLayer,
    PackedRecord,
    PackSource,
    ParameterRecipe,
    TensorSource,
    Weights,
    find_shards,
    is_pack,
    read_index,
    read_tensor,
)
from server.kernels.expert import dequantised, in_module_order, is_in_parts, transposed_names
from server.model.checkpoint.packed_trunk import TRUNK_FORMATS, TrunkFormat, quantised_linears, split_trunk
from server.model.checkpoint.tensor_map import (
    CheckpointMap,
    PackedMatrices,
    experts_modules,
    layer_numbers,
    map_checkpoint,
)
from server.model.checkpoint.weight_formats import (
    WEIGHT_FORMATS,
    WeightFormat,
    encode,
    packed_layout,
    readable_layouts,
)
from server.model.errors import ModelError
from server.model.quantised.matrix import group_by_matrix, stored_parts
from server.model.quantised.scheme import find_scheme

FILES = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt")  # config, tokenizer and generation config
NOT_FILES = ("*.index.json", "LICENSE*", "README*")


def pack_source(
    model: PreTrainedModel, folder: Path, name: str, weights: WeightFormat, trunk: TrunkFormat = UNCHANGED
) -> PackSource:
    """Describe the contents of a pack of a checkpoint.

    Args:
        model: the model on the meta device, with its experts' parameters.
        name: the name that the pack is served under.
        weights: the format of the experts.
        trunk: the format of the trunk's linear layers.

    Raises:
        ModelError: the checkpoint can't be packed.
        CheckpointError: its files are damaged or incomplete.
    """
    if is_pack(folder):
        raise ModelError(f"{folder} is packed already; give the checkpoint that it was made from")
    shards = find_shards(folder)
    tensors = map_checkpoint(model, read_index(shards))
    quantised = quantised_linears(model, tensors.trunk, trunk) if trunk != UNCHANGED else {}
    modules = {number: module for number, _, module in _numbered(model)}

    def encode_expert(key: ExpertKey) -> Weights:
        recipe = tensors.catalog.recipe(key)
        if isinstance(recipe, PackedRecord):
            raise ModelError(f"{key} is packed already")
        weights_read = _read_expert(recipe, tensors.catalog.layout(key.layer))
        parameters = _as_in_module(weights_read, modules[key.layer])
        try:
            return encode(parameters, transposed_names(modules[key.layer]), weights)
        except ModelError as error:
            raise ModelError(f"{key}: {error}") from error

    return PackSource(
        model=name,
        weights=weights,
        layers={
            number: PackedLayer(packed_layout(_shapes(module), transposed_names(module), weights), module.num_experts)
            for number, module in modules.items()
        },
        encode=encode_expert,
        trunk=[
            part for name, source in tensors.trunk.items() if name not in quantised for part in stored_parts(source)
        ],
        made=list(quantised.values()),
        trunk_format=trunk,
        files=_small_files(folder),
        shards=shards,
    )


def map_pack(model: PreTrainedModel, pack: Pack) -> CheckpointMap:
    """Map a packed model's tensors to the trunk and the experts of its model.

    Args:
        model: the model of the pack's ``config.json`` on the meta device, with its experts' parameters.

    Raises:
        CheckpointError: layers, experts or their tensors do not match the model.
    """
    manifest, name = pack.manifest, pack.folder.name
    if manifest.weights not in WEIGHT_FORMATS:
        raise CheckpointError(f"{name} has the unknown weight format {manifest.weights!r}; pack the model again")
    if manifest.trunk not in TRUNK_FORMATS:
        raise CheckpointError(f"{name} has the unknown trunk format {manifest.trunk!r}; pack the model again")
    numbered = _numbered(model)
    if set(pack.catalog.layers) != {number for number, _, _ in numbered}:
        raise CheckpointError(
            f"{name} has experts in layers {sorted(pack.catalog.layers)}, but its model in layers "
            f"{sorted(number for number, _, _ in numbered)}; pack the model again"
        )
    for number, _, module in numbered:
        layer = pack.catalog.layers[number]
        if len(layer.experts) != module.num_experts:
            raise CheckpointError(
                f"{name} has {len(layer.experts)} experts in layer {number}, but its model has {module.num_experts}; "
                "pack the model again"
            )
        if layer.layout not in readable_layouts(_shapes(module), transposed_names(module), manifest.weights):
            raise CheckpointError(
                f"the experts in layer {number} of {name} do not have the model's shapes; pack the model again"
            )
    plain, matrices = _split_trunk(pack)
    return CheckpointMap(group_by_matrix(find_scheme(model.config, name), plain), pack.catalog, [], matrices)


def packed_matrices(pack: Pack) -> PackedMatrices:
    """Return the quantised matrices of a pack's trunk.

    Raises:
        CheckpointError: the header of its file is damaged.
    """
    return _split_trunk(pack)[1]


def _numbered(model: PreTrainedModel) -> list[tuple[int, str, Any]]:
    """Number, name and experts module of every MoE layer."""
    modules = experts_modules(model)
    numbers = layer_numbers(list(modules))
    return [(numbers[name], name, module) for name, module in modules.items()]


def _shapes(module: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape[1:]) for name, value in module.named_parameters(recurse=False)}


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
    for name in _shapes(module):
        matrix, owner = dequantised(weights, name), name.removesuffix("_bias")
        value = weights[name] if matrix is None else matrix
        if is_in_parts(weights, owner):
            value = in_module_order(module, owner, value, 0)
        parameters[name] = value.mT if matrix is not None and name in transposed else value
    return parameters


def _split_trunk(pack: Pack) -> tuple[dict[str, TensorSource], PackedMatrices]:
    index = read_index([pack.trunk])
    return (index, {}) if pack.manifest.trunk == UNCHANGED else split_trunk(index)


def _small_files(folder: Path) -> list[Path]:
    found = {path for pattern in FILES for path in folder.glob(pattern) if path.is_file()}
    return sorted(found - {path for pattern in NOT_FILES for path in folder.glob(pattern)})
