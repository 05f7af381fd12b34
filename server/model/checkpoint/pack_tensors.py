"""The tensors of a packed model, compared with its model."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from expert_store import UNCHANGED, CheckpointError, ExpertLayout, Pack, TensorSource, read_index, read_json_object
from server.kernels.expert import transposed_names
from server.model.checkpoint.expert_parameters import parameter_shapes
from server.model.checkpoint.gguf import pack_file
from server.model.checkpoint.packed_trunk import TRUNK_FORMATS, split_trunk
from server.model.checkpoint.slot_matrices import find_matrices
from server.model.checkpoint.tensor_map import CheckpointMap, PackedMatrices, experts_modules, layer_numbers
from server.model.checkpoint.weight_formats import WEIGHT_FORMATS, StoredFormat, readable_layouts
from server.model.quantised.matrix import group_by_matrix
from server.model.quantised.scheme import find_scheme

REMEDY = "copy the pack again, or pack the model again"


def map_pack(model: PreTrainedModel, pack: Pack) -> CheckpointMap:
    """Map a packed model's tensors to the trunk and the experts of its model.

    Args:
        model: the model of the pack's ``config.json`` on the meta device, with its experts' parameters.

    Raises:
        CheckpointError: layers, experts or their tensors do not match the model.
    """
    manifest, name = pack.manifest, pack.folder.short_name
    if manifest.weights not in (*WEIGHT_FORMATS, UNCHANGED):
        raise CheckpointError(f"{name} has the unknown weight format {manifest.weights!r}; pack the model again")
    if manifest.trunk not in (*TRUNK_FORMATS, pack_file.FORMAT):
        raise CheckpointError(f"{name} has the unknown trunk format {manifest.trunk!r}; pack the model again")
    numbered = numbered_experts(model)
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
        if not _is_readable(layer.layout, module, manifest.weights):
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


def numbered_experts(model: PreTrainedModel) -> list[tuple[int, str, Any]]:
    """Number, name and experts module of every MoE layer."""
    modules = experts_modules(model)
    numbers = layer_numbers(list(modules))
    return [(numbers[name], name, module) for name, module in modules.items()]


def _is_readable(layout: ExpertLayout, module: Any, weights: StoredFormat) -> bool:
    """Return True if experts of a layout are those of a module."""
    shapes, transposed = parameter_shapes(module), transposed_names(module)
    if weights == UNCHANGED:
        return find_matrices(layout, shapes, transposed) is not None
    return layout in readable_layouts(shapes, transposed, weights)


def _split_trunk(pack: Pack) -> tuple[dict[str, TensorSource], PackedMatrices]:
    index = read_index([pack.trunk])
    if pack.manifest.trunk == UNCHANGED:
        return index, {}
    if pack.manifest.trunk != pack_file.FORMAT:
        return split_trunk(index)
    matrices = pack_file.read_matrices(read_json_object(pack.data_folder.source(pack_file.NAME), REMEDY), index)
    taken = {source.name for matrix in matrices.values() for source in matrix.sources}
    return {name: source for name, source in index.items() if name not in taken}, matrices
