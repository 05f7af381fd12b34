"""Quantised linear layers of a pack's trunk: which they are, how they are written and how they are loaded.

A matrix whose hub name is ``X.weight`` lies in ``trunk.safetensors`` as ``X.weight_q8`` and what else
``server.kernels.q8`` has of it, or as ``X.weight_q4`` and what else ``q4`` has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Literal, get_args

from torch import nn
from transformers import PreTrainedModel

from expert_store import UNCHANGED, CheckpointError, MadeTensors, ParameterSpec, TensorSource, Weights, read_tensor
from server.kernels import blocks
from server.kernels.blocks import BlockFormat

from .architecture import text_part
from .checkpoint_map import PackedMatrices, experts_modules, renamed
from .errors import ModelError
from .mla import latent_linears
from .quantised.matrix import StoredTensor
from .quantised_linear import NAME, QuantisedLinear
from .weight_formats import BLOCK_FORMATS, QuantisedWeights, quantise

TrunkFormat = Literal["unchanged", "int8", "int4"]
TRUNK_FORMATS: tuple[TrunkFormat, ...] = get_args(TrunkFormat)
LEAST_WEIGHTS = 1 << 14  # of a layer that is worth it
HEAD_FORMAT: QuantisedWeights = "int8"  # of the head in every packed trunk, since its errors are those of the logits


def packed_bytes(matrices: PackedMatrices) -> int:
    """The bytes of quantised matrices, on disk and loaded."""
    return sum(source.extent.nbytes for parts in matrices.values() for source in parts.values())


def packed_sizes(model: PreTrainedModel, matrices: PackedMatrices) -> dict[str, int]:
    """Bytes of each quantised matrix, by the name of the parameter in whose place it is."""
    return {
        name: sum(source.extent.nbytes for source in matrices[hub_name].values())
        for hub_name, name in renamed(model, matrices).items()
    }


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linear layers that are quantised, by the names of their weights.

    These are the large ones of the text's layers and its head. Left out are routers, which choose differently for
    small changes; matrices that are shared, as a head may be the table of embeddings, of which rows are looked up;
    and what multi-head latent attention takes apart.

    Args:
        model: on the meta device; its weights are tied.
    """
    model.tie_weights()
    uses = Counter(id(tensor) for _, tensor in model.named_parameters(remove_duplicate=False))
    widths = {module.num_experts for module in experts_modules(model).values()}
    inside = {*text_part(model).modules(), model.get_output_embeddings()} - latent_linears(model)
    return {
        f"{name}.{NAME}": module
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and module in inside
        and module.out_features not in widths
        and module.weight.numel() >= LEAST_WEIGHTS
        and uses[id(module.weight)] == 1
    }


def made_tensors(
    model: PreTrainedModel, trunk: Mapping[str, TensorSource | StoredTensor], weights: QuantisedWeights
) -> dict[str, MadeTensors]:
    """The tensors that ``--trunk`` writes in the place of some of a trunk's, by their hub names.

    Args:
        model: on the meta device.
        weights: the format of all but the head, which is of ``HEAD_FORMAT``.
    """
    layers, head = linear_layers(model), model.get_output_embeddings()
    return {
        hub_name: _made(hub_name, trunk[hub_name], layers[name], HEAD_FORMAT if layers[name] is head else weights)
        for hub_name, name in renamed(model, trunk).items()
        if name in layers
    }


def split_trunk(index: Mapping[str, TensorSource]) -> tuple[dict[str, TensorSource], PackedMatrices]:
    """A pack's trunk without its quantised matrices, and these.

    Args:
        index: every tensor of the trunk's file.
    """
    matrices: dict[str, dict[str, TensorSource]] = {}
    for block_format in BLOCK_FORMATS.values():
        codes = block_format.CODES
        for base in (name.removesuffix(codes) for name in index if name.endswith(codes)):
            suffixes = codes, block_format.SCALE, codes + blocks.SHAPE
            matrices[base] = {suffix: index[base + suffix] for suffix in suffixes if base + suffix in index}
    taken = {source.name for parts in matrices.values() for source in parts.values()}
    return {name: source for name, source in index.items() if name not in taken}, matrices


def replace_linears(model: PreTrainedModel, matrices: PackedMatrices) -> dict[str, QuantisedLinear]:
    """Put a ``QuantisedLinear`` in the place of each layer whose matrix is quantised; these layers by hub name.

    Args:
        model: on the meta device.

    Raises:
        CheckpointError: the model has no such layer, or another shape.
    """
    names, replaced = renamed(model, matrices), {}
    for hub_name, parts in matrices.items():
        path = names.get(hub_name, hub_name).removesuffix(f".{NAME}")
        parent, _, child = path.rpartition(".")
        try:
            linear = model.get_submodule(path)
        except AttributeError:
            linear = None
        if type(linear) is not nn.Linear:
            raise CheckpointError(f"{hub_name} is no linear layer of the model; pack the model again")
        block_format = _block_format(parts)
        wanted = block_format.specs("", linear.out_features, linear.in_features)
        if [(suffix, source.dtype, source.shape) for suffix, source in parts.items()] != wanted:
            raise CheckpointError(f"{hub_name} has another shape than its model's; pack the model again")
        replaced[hub_name] = QuantisedLinear(linear, block_format)
        setattr(model.get_submodule(parent), child, replaced[hub_name])
    return replaced


def fill_linears(layers: Mapping[str, QuantisedLinear], matrices: PackedMatrices) -> None:
    """Read the matrices of layers.

    Raises:
        CheckpointError: a file can't be read.
    """
    for hub_name, layer in layers.items():
        layer.fill({NAME + suffix: read_tensor(source) for suffix, source in matrices[hub_name].items()})


def _block_format(parts: Mapping[str, TensorSource]) -> BlockFormat:
    """The format of a matrix, by the suffixes of its tensors."""
    return next(block_format for block_format in BLOCK_FORMATS.values() if block_format.CODES in parts)


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
