"""Chooses, writes and loads the quantised linear layers of a pack's trunk.

A matrix whose hub name is ``X.weight`` is stored in ``trunk.safetensors`` as ``X.weight_q8`` with the further tensors
of ``server.kernels.formats.block_int8``, or as ``X.weight_q4`` with those of ``block_int4``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal, get_args

import torch
from torch import nn
from transformers import PreTrainedModel

from expert_store import (
    UNCHANGED,
    CheckpointError,
    MadeTensors,
    ParameterSpec,
    TensorSource,
    Weights,
    read_tensor,
)
from server.kernels.formats import blocks
from server.model.architecture import head_of, text_part
from server.model.attention.mla import latent_linears
from server.model.checkpoint.tensor_map import PackedMatrices, experts_modules, renamed
from server.model.checkpoint.weight_formats import BLOCK_FORMATS, QuantisedWeights, quantise
from server.model.errors import ModelError
from server.model.quantised.conversions import Conversion, convert_all
from server.model.quantised.embedding import quantise_embedding
from server.model.quantised.linear import NAME, LinearFormat, QuantisedLinear, QuantisedMatrix
from server.model.quantised.matrix import SlotTensor, StoredTensor
from server.model.quantised.packed_matrix import PackedMatrix
from server.progress import progress

TrunkFormat = Literal["unchanged", "int8", "int4"]
TRUNK_FORMATS: tuple[TrunkFormat, ...] = get_args(TrunkFormat)
PART_BYTES = 4 << 20  # of a matrix that are converted at a time
LEAST_WEIGHTS = 1 << 14  # smaller layers are not worth quantising
ROUTER = "Router"  # end of the names of classes, of which some have layers before their matrix
HEAD_FORMAT: QuantisedWeights = "int8"  # for the head in every format, since its errors go straight into the logits


def packed_bytes(matrices: PackedMatrices) -> int:
    """Return the bytes of quantised matrices, loaded."""
    return sum(matrix.nbytes for matrix in matrices.values())


def packed_sizes(model: PreTrainedModel, matrices: PackedMatrices) -> dict[str, int]:
    """Return the bytes of each quantised matrix, by the name of the parameter that it replaces."""
    return {name: matrices[hub_name].nbytes for hub_name, name in renamed(model, matrices).items()}


def linear_layers(model: PreTrainedModel, *, takes_all_widths: bool = False) -> dict[str, nn.Linear]:
    """Find the linear layers to quantise, by the names of their weights.

    These are the large ones in the text part's layers, and the head. Not included are routers, whose choices are
    sensitive to small changes; shared matrices; and the projections that multi-head latent attention splits.

    Args:
        model: the model; on the meta device, this ties its weights, which those of a loaded one are already.
        takes_all_widths: also find those of routers, and others with as many outputs as there are experts.
    """
    embedding = model.get_input_embeddings()
    if model.device.type == "meta" and isinstance(getattr(embedding, NAME, None), nn.Parameter):  # it is not quantised
        model.tie_weights()
    uses = Counter(id(tensor) for _, tensor in model.named_parameters(remove_duplicate=False))
    experts = () if takes_all_widths else experts_modules(model).values()
    widths = {module.num_experts + getattr(module, "num_identities", 0) for module in experts}  # outputs of routers
    named = () if takes_all_widths else model.modules()
    routers = [module for module in named if type(module).__name__.endswith(ROUTER)]
    of_routers = {child for router in routers for child in router.modules()}
    inside = {*text_part(model).modules(), head_of(model)} - latent_linears(model) - of_routers
    return {
        f"{name}.{NAME}": module
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and module in inside
        and module.out_features not in widths
        and module.weight.numel() >= LEAST_WEIGHTS
        and uses[id(module.weight)] == 1
    }


def tied_head(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Find the head whose matrix is the embedding table and nothing else, by the name of the table.

    Args:
        model: the model on the meta device, with tied weights.
    """
    head, embedding = head_of(model), model.get_input_embeddings()
    if type(head) is not nn.Linear or not isinstance(embedding, nn.Embedding) or head.weight is not embedding.weight:
        return {}
    shared = [name for name, tensor in model.named_parameters(remove_duplicate=False) if tensor is head.weight]
    tables = [f"{name}.{NAME}" for name, module in model.named_modules() if module is embedding]
    return {tables[0]: head} if len(shared) == 2 else {}  # noqa: PLR2004  the table's and the head's


def quantised_linears(
    model: PreTrainedModel, trunk: Mapping[str, TensorSource | StoredTensor], weights: QuantisedWeights
) -> dict[str, MadeTensors]:
    """Return the quantised tensors that ``--trunk`` writes, by the hub names of the matrices that they replace.

    Args:
        model: the model on the meta device.
        weights: the format of all layers except the head, which has ``HEAD_FORMAT``, as has the embedding table if it
            is the head's matrix.
    """
    layers, head = linear_layers(model) | tied_head(model), head_of(model)
    return {
        hub_name: _made(hub_name, trunk[hub_name], layers[name], HEAD_FORMAT if layers[name] is head else weights)
        for hub_name, name in renamed(model, trunk).items()
        if name in layers
    }


def split_trunk(index: Mapping[str, TensorSource]) -> tuple[dict[str, TensorSource], PackedMatrices]:
    """Split a pack's trunk into plain tensors and quantised matrices.

    Args:
        index: all tensors of the trunk's file.
    """
    matrices: dict[str, PackedMatrix] = {}
    for block_format in BLOCK_FORMATS.values():
        codes = block_format.CODES
        for base in (name.removesuffix(codes) for name in index if name.endswith(codes)):
            suffixes = codes, block_format.SCALE, codes + blocks.SHAPE
            parts = {suffix: index[base + suffix] for suffix in suffixes if base + suffix in index}
            tensors = (SlotTensor(suffix, part.dtype, part.shape, (part,)) for suffix, part in parts.items())
            matrices[base] = PackedMatrix(block_format, tuple(tensors))
    taken = {source.name for matrix in matrices.values() for source in matrix.sources}
    return {name: source for name, source in index.items() if name not in taken}, matrices


def replace_matrices(model: PreTrainedModel, matrices: PackedMatrices) -> dict[str, QuantisedMatrix]:
    """Replace each layer and each embedding whose matrix is quantised; returns what holds the matrices by hub name.

    Args:
        model: the model on the meta device.

    Raises:
        CheckpointError: the model has no such layer, or the layer has another shape.
    """
    names, replaced = renamed(model, matrices), {}
    others: dict[nn.Module, nn.Module] = {}  # by the modules in whose place they will be put
    for hub_name, matrix in matrices.items():
        path = names.get(hub_name, hub_name).removesuffix(f".{NAME}")
        try:
            module = model.get_submodule(path)
        except AttributeError:
            module = None
        if module in others or (type(module) is not nn.Linear and not isinstance(module, nn.Embedding)):
            raise CheckpointError(f"{hub_name} is not a linear layer of the model; pack the model again")
        wanted = matrix.format.specs("", *module.weight.shape)
        if [(tensor.suffix, tensor.dtype, tensor.shape) for tensor in matrix.tensors] != wanted:
            raise CheckpointError(f"{hub_name} does not have the model's shape; pack the model again")
        if isinstance(module, nn.Embedding):
            replaced[hub_name] = _replace_embedding(model, path, module, matrix.format, others)
        else:
            replaced[hub_name] = others[module] = QuantisedLinear(module, matrix.format)
    _put(model, others)
    return replaced


def _replace_embedding(
    model: PreTrainedModel,
    path: str,
    module: nn.Embedding,
    matrix_format: LinearFormat,
    others: dict[nn.Module, nn.Module],
) -> QuantisedMatrix:
    """Quantise an embedding, and the head that has the same weights.

    Args:
        others: modules by those in whose place they will be put.
    """
    model.tie_weights()
    head = head_of(model)
    is_shared = type(head) is nn.Linear and head not in others and head.weight is module.weight
    table = quantise_embedding(module, matrix_format, head if is_shared else None)
    if is_shared:
        others[head] = table
        tied, name = model.all_tied_weights_keys, f"{path}.{NAME}"  # transformers would tie them again
        model.all_tied_weights_keys = {one: other for one, other in tied.items() if name not in {one, other}}
    return table


def _put(model: PreTrainedModel, others: Mapping[nn.Module, nn.Module]) -> None:
    """Put modules in the places of others."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # noqa: SLF001  a module may have two names
            if child in others:
                setattr(parent, name, others[child])


def fill_matrices(layers: Mapping[str, QuantisedMatrix], matrices: PackedMatrices, num_threads: int) -> None:
    """Read the matrices of quantised layers and embeddings.

    Args:
        num_threads: that convert what is read.

    Raises:
        CheckpointError: a file can't be read.
    """
    conversions: list[Conversion[object]] = []
    for hub_name, layer in layers.items():
        matrix = matrices[hub_name]
        if not matrix.is_converted:
            conversions.append(Conversion(matrix.sources, partial(_fill, layer, matrix)))
            continue
        whole = matrix.empty()
        layer.fill({NAME + suffix: tensor for suffix, tensor in whole.items()})
        conversions += [
            Conversion(part.sources, partial(part.make, into=share), is_copy=True)
            for part, share in matrix.parts(PART_BYTES, whole)
        ]
    sizes = [sum(source.extent.nbytes for source in each.sources) for each in conversions]
    with progress("loading the trunk", sum(sizes)) as shown:
        for nbytes, _ in zip(sizes, convert_all(conversions, num_threads), strict=True):
            shown.advance(nbytes)


def _fill(layer: QuantisedMatrix, matrix: PackedMatrix, sources: Sequence[torch.Tensor]) -> None:
    layer.fill({NAME + suffix: tensor for suffix, tensor in matrix.make(sources).items()})


def _made(
    hub_name: str, source: TensorSource | StoredTensor, linear: nn.Linear, weights: QuantisedWeights
) -> MadeTensors:
    shape = linear.out_features, linear.in_features

    def make() -> Weights:
        matrix = read_tensor(source) if isinstance(source, TensorSource) else source.dequantise()
        if matrix.shape != shape:
            raise ModelError(f"{hub_name} has shape {list(matrix.shape)}; the model's is {list(shape)}")
        try:
            return quantise(hub_name, matrix, weights)
        except ModelError as error:
            raise ModelError(f"{error}; pack it with --trunk {UNCHANGED}") from error

    return MadeTensors(tuple(ParameterSpec(*spec) for spec in BLOCK_FORMATS[weights].specs(hub_name, *shape)), make)
