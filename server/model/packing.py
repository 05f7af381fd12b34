"""From a checkpoint to what is packed, and from a packed model to what is loaded."""

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
from server.kernels.expert import dequantised, transposed_names

from .checkpoint_map import CheckpointMap, PackedMatrices, experts_modules, layer_numbers, map_checkpoint
from .errors import ModelError
from .packed_trunk import TRUNK_FORMATS, TrunkFormat, made_tensors, split_trunk
from .quantised.matrix import sort_index, stored_parts
from .quantised.scheme import find_scheme
from .weight_formats import WEIGHT_FORMATS, WeightFormat, encode, packed_layout, readable_layouts

FILES = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt")  # config, tokenizer, generation
NOT_FILES = ("*.index.json", "LICENSE*", "README*")


def pack_source(
    model: PreTrainedModel, folder: Path, name: str, weights: WeightFormat, trunk: TrunkFormat = UNCHANGED
) -> PackSource:
    """What has to be packed of a checkpoint.

    Args:
        model: on the meta device, its experts' parameters still in place.
        name: what the pack will be served as.
        weights: the format of the experts.
        trunk: the format of the linear layers beside them.

    Raises:
        ModelError: the checkpoint can't be packed.
        CheckpointError: its files are damaged or incomplete.
    """
    if is_pack(folder):
        raise ModelError(f"{folder} is packed already; give the checkpoint that it was made from")
    shards = find_shards(folder)
    places = map_checkpoint(model, read_index(shards))
    made = made_tensors(model, places.trunk, trunk) if trunk != UNCHANGED else {}
    modules = {number: module for number, _, module in _numbered(model)}

    def encode_expert(key: ExpertKey) -> Weights:
        recipe = places.catalog.recipe(key)
        if isinstance(recipe, PackedRecord):
            raise ModelError(f"{key} is packed already")
        weights_read = _read_expert(recipe, places.catalog.layout(key.layer))
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
        trunk=[part for name, source in places.trunk.items() if name not in made for part in stored_parts(source)],
        made=list(made.values()),
        trunk_format=trunk,
        files=_small_files(folder),
        shards=shards,
    )


def map_pack(model: PreTrainedModel, pack: Pack) -> CheckpointMap:
    """Where everything in a packed model belongs.

    Args:
        model: as its ``config.json`` says, on the meta device, its experts' parameters still in place.

    Raises:
        CheckpointError: its layers, experts or their tensors are not the model's.
    """
    manifest, name = pack.manifest, pack.folder.name
    if manifest.weights not in WEIGHT_FORMATS:
        raise CheckpointError(f"{name} has the unknown weights {manifest.weights!r}; pack the model again")
    if manifest.trunk not in TRUNK_FORMATS:
        raise CheckpointError(f"{name} has the unknown trunk {manifest.trunk!r}; pack the model again")
    numbered = _numbered(model)
    if set(pack.catalog.layers) != {number for number, _, _ in numbered}:
        raise CheckpointError(
            f"{name} has experts of the layers {sorted(pack.catalog.layers)}, its model of "
            f"{sorted(number for number, _, _ in numbered)}; pack the model again"
        )
    for number, _, module in numbered:
        layer = pack.catalog.layers[number]
        if len(layer.experts) != module.num_experts:
            raise CheckpointError(
                f"{name} has {len(layer.experts)} experts in layer {number}, its model {module.num_experts}; "
                "pack the model again"
            )
        if layer.layout not in readable_layouts(_shapes(module), transposed_names(module), manifest.weights):
            raise CheckpointError(f"the experts of layer {number} of {name} have other shapes than its model's")
    plain, matrices = _split_trunk(pack)
    return CheckpointMap(sort_index(find_scheme(model.config, name), plain), pack.catalog, [], matrices)


def packed_matrices(pack: Pack) -> PackedMatrices:
    """The matrices of a pack's trunk that are quantised.

    Raises:
        CheckpointError: the header of its file is damaged.
    """
    return _split_trunk(pack)[1]


def _numbered(model: PreTrainedModel) -> list[tuple[int, str, Any]]:
    """Number, name and module of every layer's experts."""
    modules = experts_modules(model)
    numbers = layer_numbers(list(modules))
    return [(numbers[name], name, module) for name, module in modules.items()]


def _shapes(module: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape[1:]) for name, value in module.named_parameters(recurse=False)}


def _read_expert(recipe: Mapping[str, ParameterRecipe], layout: ExpertLayout) -> Weights:
    """An expert's tensors as a slot has them."""
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
    """An expert's parameters as its module has them, dequantised where they are quantised."""
    parameters, transposed = {}, transposed_names(module)
    for name in _shapes(module):
        matrix = dequantised(weights, name)
        parameters[name] = weights[name] if matrix is None else matrix.mT if name in transposed else matrix
    return parameters


def _split_trunk(pack: Pack) -> tuple[dict[str, TensorSource], PackedMatrices]:
    index = read_index([pack.trunk])
    return (index, {}) if pack.manifest.trunk == UNCHANGED else split_trunk(index)


def _small_files(folder: Path) -> list[Path]:
    found = {path for pattern in FILES for path in folder.glob(pattern) if path.is_file()}
    return sorted(found - {path for pattern in NOT_FILES for path in folder.glob(pattern)})
