"""The tensors of a GGUF file under the names of transformers' model, as trunk and experts are read from them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from expert_store import CheckpointError, GgufTensor, TensorSource, read_tensor
from server.model.attention.mla import latent_linears
from server.model.checkpoint.gguf.architecture import Architecture
from server.model.checkpoint.gguf.block_matrices import (
    dequantise_blocks,
    packed_expansion,
    packed_matrix,
    stored_matrix,
)
from server.model.checkpoint.gguf.conversions import OF_COLUMNS, OF_ROWS, column_order, expansion_of_latents, unchanged
from server.model.checkpoint.gguf.gguf_file import GgufFile
from server.model.checkpoint.gguf.places import Place
from server.model.checkpoint.packed_trunk import linear_layers
from server.model.checkpoint.tensor_map import PackedMatrices, renamed
from server.model.errors import ModelError
from server.model.quantised.linear import NAME
from server.model.quantised.matrix import ReadTensor, StoredTensor
from server.model.quantised.packed_matrix import PackedMatrix

LAYER = re.compile(r"blk\.(\d+)\.(.+)")
STACKS = {  # of all experts of a layer, by leaf: the linear layers of each expert
    "ffn_gate_exps": ("gate_proj",),
    "ffn_up_exps": ("up_proj",),
    "ffn_down_exps": ("down_proj",),
    "ffn_gate_up_exps": ("gate_proj", "up_proj"),  # the outputs of gates first
}
STACK = re.compile(rf"({'|'.join(STACKS)})\.(weight|bias)")
FACTORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")  # the config has them
NVFP4, FACTOR, INPUT_FACTOR = "NVFP4", ".scale", ".input_scale"  # the type, and ends of names of what belongs to it
Tensors = dict[str, TensorSource | StoredTensor]


@dataclass(frozen=True)
class ConvertedTensor(StoredTensor):
    """A parameter of the trunk that is computed, in float32, from one or more tensors of the file."""

    place: Place
    tensors: tuple[GgufTensor, ...]
    values: Mapping[str, Any]  # of the config
    factors: tuple[TensorSource | None, ...] = ()  # of tensors whose weights a number multiplies; none at all if empty

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the parameter.

        Raises:
            CheckpointError: the tensors have not the shapes that the config needs.
        """
        try:
            found = self.place.convert(self.values, [torch.empty(each.shape, device="meta") for each in self.tensors])
        except (RuntimeError, ValueError) as error:
            shapes = ", ".join(f"{each.name} {list(each.shape)}" for each in self.tensors)
            raise CheckpointError(
                f"{shapes} can't be {self.name} of this architecture; download the file again"
            ) from error
        return tuple(found.shape)

    @property
    def reads(self) -> Iterator[TensorSource]:
        """The tensors of the file."""
        factors = self.factors or [None] * len(self.tensors)
        for tensor, factor in zip(self.tensors, factors, strict=True):
            yield tensor.source
            if factor is not None:
                yield factor

    def packed(self) -> PackedMatrix | None:
        """Return the matrix that stays quantised; None if it can't."""
        convert, kinds = self.place.convert, {each.type for each in self.tensors}
        if any(kind.dtype is not None for kind in kinds):
            return None
        if len(self.factors) > 1:
            return None
        if convert is expansion_of_latents:
            return packed_expansion(*self.tensors)
        if len(kinds) > 1 or convert not in (*OF_ROWS, *OF_COLUMNS):
            return None
        outputs, inputs = self.shape
        [*_, factor] = self.factors or [None]
        sources = tuple(each.source for each in self.tensors)
        if convert in OF_COLUMNS:
            join, order = partial(unchanged, self.values), column_order(convert, self.values, inputs)
            return packed_matrix(self.tensors[0].type, (outputs, inputs), sources, join, order=order, factor=factor)
        join = partial(convert, self.values)
        return packed_matrix(
            self.tensors[0].type, (outputs, inputs), sources, join, keeps_rows=convert is unchanged, factor=factor
        )

    def read(self, dtype: torch.dtype, read: ReadTensor = read_tensor) -> torch.Tensor:
        """Read and compute the parameter; matrices are rounded to the dtype, the rest stays float32."""
        found = self.dequantise(read)
        return found.to(dtype) if found.ndim > 1 else found

    def dequantise(self, read: ReadTensor = read_tensor) -> torch.Tensor:
        """Read and compute the parameter, in float32."""
        found, factors = [], self.factors or [None] * len(self.tensors)
        for tensor, factor in zip(self.tensors, factors, strict=True):
            numbers = dequantise_blocks(tensor.type, read(tensor.source))
            found.append(numbers if factor is None else numbers * read(factor))
        return self.place.convert(self.values, found)


def packed_matrices(model: PreTrainedModel, tensors: Tensors) -> PackedMatrices:
    """Return the matrices of linear layers and embeddings that stay quantised in memory, as they are in the file.

    Args:
        model: the model on the meta device; this ties its weights.
        tensors: what ``named_tensors`` returned.
    """
    inside = {
        *linear_layers(model, takes_all_widths=True).values(),
        *latent_linears(model),
        model.get_input_embeddings(),
    }
    modules = {f"{name}.{NAME}": module for name, module in model.named_modules() if module in inside}
    stored = {name: each for name, each in tensors.items() if name in modules and isinstance(each, ConvertedTensor)}
    stored = {  # rows of a table are looked up without a factor
        name: each for name, each in stored.items() if not (each.factors and isinstance(modules[name], nn.Embedding))
    }
    packed = {name: each.packed() for name, each in stored.items()}
    return {name: matrix for name, matrix in packed.items() if matrix is not None}


def check_shapes(model: PreTrainedModel, tensors: Mapping[str, TensorSource | StoredTensor]) -> None:
    """Compare the tensors of the trunk with the parameters that they become.

    Args:
        tensors: by hub name.

    Raises:
        CheckpointError: a tensor has not the shape of its parameter.
    """
    parameters = model.state_dict(keep_vars=True)
    for name, parameter in renamed(model, tensors).items():
        found, wanted = list(tensors[name].shape), list(parameters[parameter].shape)
        if found != wanted:
            files = ", ".join(sorted({each.extent.source.short_name for each in _sources(tensors[name])}))
            raise CheckpointError(f"{name} of {files} has the shape {found}, but the config needs {wanted}")


def _sources(tensor: TensorSource | StoredTensor) -> tuple[TensorSource, ...]:
    return (tensor,) if isinstance(tensor, TensorSource) else tensor.sources


def named_tensors(file: GgufFile, architecture: Architecture, values: Mapping[str, Any]) -> Tensors:
    """Return the tensors of a file by the names of parameters, and of linear layers of experts.

    Args:
        values: of the config.

    Raises:
        ModelError: the file has a tensor that Greenroom does not know for this architecture.
        CheckpointError: a tensor that belongs to another is missing, or a shape is not that of experts.
    """
    found: Tensors = {}
    others = {leaf for places in (architecture.layer, architecture.model) for p in places.values() for leaf in p.others}
    image_tensors = set(file.image_tensors)
    for tensor in file.tensors.values():
        if tensor.name in image_tensors:
            continue
        match = LAYER.fullmatch(tensor.name)
        if match is not None and int(match[1]) >= values["num_hidden_layers"]:
            continue  # predicts further tokens
        leaf, prefix = (match[2], f"model.layers.{match[1]}.") if match else (tensor.name, "")
        stack = STACK.fullmatch(leaf) if match else None
        if stack is not None:
            module = f"{prefix}{architecture.experts}"
            factors = file.tensors.get(tensor.name.replace(".weight", FACTOR)) if tensor.type.name == NVFP4 else None
            for source in _experts(tensor, module, STACKS[stack[1]], stack[2], factors):
                found[source.name] = source
            continue
        place = (architecture.layer if match else architecture.model).get(leaf)
        if place is None:
            if leaf in others or leaf in FACTORS or _belongs_to_nvfp4(file, tensor.name):
                continue
            raise ModelError(
                f"{file.name} has {tensor.name}, which Greenroom does not know in {file.architecture}; give the "
                "model in safetensors"
            )
        source = _trunk_tensor(
            file, tensor, match[1] if match else None, place, values=values, name=prefix + place.name
        )
        found[source.name] = source
    return found


def _trunk_tensor(
    file: GgufFile, tensor: GgufTensor, layer: str | None, place: Place, *, values: Mapping[str, Any], name: str
) -> TensorSource | StoredTensor:
    if place.convert is unchanged and tensor.type.dtype is not None:
        return TensorSource(name, tensor.type.dtype, tensor.shape, tensor.source.extent)
    names = [leaf if layer is None else f"blk.{layer}.{leaf}" for leaf in place.others]
    missing = [each for each in names if each not in file.tensors]
    if missing:
        raise CheckpointError(f"{file.name} has {tensor.name} but not {missing[0]}; download the file again")
    tensors = (tensor, *(file.tensors[each] for each in names))
    factors = tuple(_factor(file, each) for each in tensors)
    sources = tuple(each.source for each in tensors) + tuple(each for each in factors if each is not None)
    return ConvertedTensor(name, sources, (), False, place, tensors, values, factors if any(factors) else ())


def _factor(file: GgufFile, tensor: GgufTensor) -> TensorSource | None:
    """Return the number that multiplies the weights of an NVFP4 matrix, if there is one."""
    found = file.tensors.get(tensor.name.removesuffix(".weight") + FACTOR) if tensor.type.name == NVFP4 else None
    if found is None:
        return None
    if found.type.dtype != torch.float32 or found.shape != (1,):
        raise CheckpointError(f"{found.name} of {file.name} is not one number; download the file again")
    return found.source


def _belongs_to_nvfp4(file: GgufFile, name: str) -> bool:
    """Return True for a factor of an NVFP4 matrix, or of its inputs, which only arithmetic in NVFP4 needs."""
    stem = next((name.removesuffix(suffix) for suffix in (INPUT_FACTOR, FACTOR) if name.endswith(suffix)), None)
    matrix = file.tensors.get(f"{stem}.weight")
    return matrix is not None and matrix.type.name == NVFP4


def _experts(
    tensor: GgufTensor, module: str, linears: Sequence[str], kind: str, factors: GgufTensor | None = None
) -> Iterator[TensorSource | StoredTensor]:
    """Yield the parts of a stack of all experts: a weight or a bias of one linear layer of one expert each."""
    dimensions = 3 if kind == "weight" else 2
    if len(tensor.shape) != dimensions or tensor.shape[1] % len(linears):
        raise CheckpointError(
            f"{tensor.name} has the shape {list(tensor.shape)}, not that of experts; download it again"
        )
    num_experts, outputs = tensor.shape[0], tensor.shape[1] // len(linears)
    if factors is not None and (factors.type.dtype != torch.float32 or factors.shape != (num_experts,)):
        raise CheckpointError(f"{factors.name} is not a number for each expert; download the file again")
    for expert in range(num_experts):
        part = tensor.source.leading_part(expert, num_experts)
        whole = TensorSource(part.name, part.dtype, part.shape[1:], part.extent)
        for number, linear in enumerate(linears):
            name = f"{module}.{expert}.{linear}.{kind}"
            rows = whole.rows(number * outputs, outputs)
            source = TensorSource(name, rows.dtype, rows.shape, rows.extent)
            if tensor.type.dtype is not None:
                yield source
            else:
                factor = None if factors is None else factors.source.leading_part(expert, num_experts)
                matrix = stored_matrix(tensor.type, (outputs, tensor.shape[2]), source, factor)
                sources = (source,) if factor is None else (source, factor)
                yield StoredTensor(name, sources, (matrix,), is_of_experts=False)
