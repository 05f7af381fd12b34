"""Parameters of single experts in a checkpoint: the tensors that they are made of, and how a slot gets them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.core_model_loading import Concatenate, WeightConverter

from expert_store import CheckpointError, ParameterRecipe, ParameterSpec, TensorSource
from server.kernels.expert import transposed_names
from server.model.checkpoint.expert_linears import GATE_UP, linear_converter
from server.model.errors import ExpertShapeError
from server.model.quantised.matrix import StoredMatrix, StoredTensor
from server.model.quantised.slots import is_stack, slot_tensors


@dataclass
class ExpertParameter:
    """One parameter of one expert, while its sources are collected."""

    converter: WeightConverter | None
    is_linear: bool = False  # its sources are linear layers of one expert, which need a conversion of their own
    sources: list[tuple[int, TensorSource | StoredMatrix]] = field(default_factory=list)  # each with its order


ExpertParts = dict[str, ExpertParameter]  # by parameter


class ExpertCounts(NamedTuple):
    """Numbers of experts of a layer."""

    used: int
    stored: int  # in a checkpoint, with those that compute nothing

    @classmethod
    def of(cls, module: Any) -> ExpertCounts:
        return cls(module.num_experts, getattr(module, "num_stored_experts", module.num_experts))


def split_by_expert(
    source: TensorSource | StoredTensor,
    expert: int | None,
    counts: ExpertCounts | None,
    rank: int = 0,
    *,
    parameter: str = "",
) -> Sequence[tuple[int, TensorSource | StoredMatrix]]:
    """Split a tensor into its experts; those that compute nothing are left out.

    Args:
        expert: the only expert that it belongs to; None for a tensor of all experts.
        counts: of the layer; None if a tensor of all experts may have any number.
        rank: number of dimensions of one expert's parameter. A tensor of all experts has one more, or has the experts'
            rows concatenated.
        parameter: the name in the model of that of all experts, for errors.
    """
    if counts is None:
        num_experts = num_stored = expert + 1 if expert is not None else _leading_size(source, rank)
    else:
        num_experts, num_stored = counts
    if expert is not None and expert >= num_stored:
        message = f"{source.name} belongs to expert {expert}, but the model has {num_stored} experts in a layer"
        raise ExpertShapeError(message, parameter, [0])
    if isinstance(source, StoredTensor):
        count = num_stored if len(source.matrices) == num_stored else num_experts
        return [each for each in source.of_experts(expert, count) if each[0] < num_experts]
    if expert is not None:
        return [(expert, source)] if expert < num_experts else []
    is_flat = len(source.shape) == rank > 1
    rows = source.shape[0] if source.shape else 0
    count = num_stored if rows == num_stored else num_experts
    if not rows or (rows % count if is_flat else rows != count):
        wanted = f"a multiple of {count}" if is_flat else count
        message = f"{source.name} has shape {list(source.shape)}; its first dimension should be {wanted}"
        raise ExpertShapeError(message, parameter, [0])
    return [(index, source.leading_part(index, count)) for index in range(num_experts)]


def expert_parameters(
    model: nn.Module, name: str, module: Any, expert: int, parts: Mapping[str, ExpertParameter]
) -> list[tuple[ParameterSpec, ParameterRecipe]]:
    """Return the slot tensors of one expert, with the recipes to read them.

    Args:
        name: of the experts module.
        parts: its tensors in the checkpoint.

    Raises:
        CheckpointError: a tensor is missing or has the wrong size.
    """
    made: list[tuple[ParameterSpec, ParameterRecipe]] = []
    gate_up = parts[GATE_UP].sources if GATE_UP in parts else []
    is_in_parts = any(isinstance(source, StoredMatrix) for _, source in gate_up)
    for parameter, shape in parameter_shapes(module).items():
        if parameter not in parts:
            message = f"{name}: expert {expert} has no tensor for {parameter}"
            raise ExpertShapeError(message, f"{name}.{parameter}", [0] if expert else [])
        if parts[parameter].is_linear:
            parts[parameter].converter = linear_converter(module, parameter, is_in_parts=is_in_parts)
        made += _slot_tensors(model, module, f"{name}.{parameter}", shape, parts[parameter])
    return made


def parameter_shapes(module: Any) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter of one expert."""
    return {parameter: tuple(value.shape[1:]) for parameter, value in module.named_parameters(recurse=False)}


def _leading_size(source: TensorSource | StoredTensor, rank: int) -> int:
    """Return the number of experts of a tensor of all experts."""
    if isinstance(source, StoredTensor):
        return len(source.matrices)
    if len(source.shape) == rank:
        raise CheckpointError(f"{source.name} has the rows of all experts in one matrix; give a tensor for each expert")
    return source.shape[0] if source.shape else 0


def _slot_tensors(
    model: nn.Module, module: Any, target: str, shape: tuple[int, ...], part: ExpertParameter
) -> Iterable[tuple[ParameterSpec, ParameterRecipe]]:
    """The tensors of one expert's parameter in a slot, with the recipes to read them."""
    ordered = [source for _, source in sorted(part.sources, key=lambda item: item[0])]
    parameter = target.rpartition(".")[2]
    matrices = [source for source in ordered if isinstance(source, StoredMatrix)]
    if matrices:
        usable = matrices if len(matrices) == len(ordered) else []  # some quantised and some not: refused
        is_transposed = parameter in transposed_names(module)
        if part.is_linear:  # (out, in) in every family
            upright = [replace(matrix, is_out_in=True) for matrix in usable]
            return slot_tensors(upright, target, shape, None, is_transposed=is_transposed)
        return slot_tensors(usable, target, shape, part.converter, is_transposed=is_transposed)
    sources = tuple(source for source in ordered if isinstance(source, TensorSource))
    recipe, dtype = _recipe(model, target, shape, part, sources)
    return [(ParameterSpec(parameter, dtype, shape), recipe)]


def _recipe(
    model: nn.Module,
    target: str,
    shape: tuple[int, ...],
    part: ExpertParameter,
    sources: tuple[TensorSource, ...],
) -> tuple[ParameterRecipe, torch.dtype]:
    """The recipe to read one expert's unquantised parameter, and its dtype in a slot."""
    converter = part.converter
    if converter is None:
        found = sources[0].shape
        if shape not in (found, found[1:]):
            message = f"{sources[0].name} has shape {list(found)}; {target} needs {list(shape)}"
            raise ExpertShapeError(message, target, _others(found[-len(shape) :], shape))
    if converter is None or _is_concatenation(converter, sources, shape):
        return ParameterRecipe(sources), sources[0].dtype
    # A converter may have patterns for other formats, and one pattern may match several tensors.
    patterns = [converter.source_patterns[order] for order in sorted(order for order, _ in part.sources)]
    one_expert = _OneExpert(model.get_parameter(target)[:1])

    def assemble(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        values: Any = {pattern: [] for pattern in patterns}
        for pattern, tensor in zip(patterns, tensors, strict=True):
            values[pattern].append(tensor)
        for operation in converter.operations:
            values = operation.convert(
                values,
                source_patterns=converter.source_patterns,
                target_patterns=converter.target_patterns,
                full_layer_name=target,
                model=one_expert,
                config=model.config,
                missing_keys=None,
            )
        value = next(iter(values.values()))
        result: torch.Tensor = value[0] if isinstance(value, list) else value
        return result[0]  # drops the dimension of experts, whose size is one

    names = ", ".join(source.name for source in sources)
    try:
        result = assemble([torch.empty(source.shape, dtype=source.dtype, device="meta") for source in sources])
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        wanted = ", ".join(converter.source_patterns)
        raise CheckpointError(f"{target} needs {wanted} for each expert, but has only {names}") from error
    if tuple(result.shape) != shape:
        message = f"{names} convert to shape {list(result.shape)}; {target} needs {list(shape)}"
        raise ExpertShapeError(message, target, _others(result.shape, shape))
    return ParameterRecipe(sources, assemble), result.dtype


def _others(found: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """Return the dimensions of a parameter of all experts in which one expert's shape is not the wanted one."""
    are_alike = len(found) == len(wanted)
    return [1 + each for each, size in enumerate(wanted) if not are_alike or found[each] != size]


@dataclass(frozen=True)
class _OneExpert:
    """Stands in for a model with one expert per layer, with the methods that a conversion calls."""

    parameter: torch.Tensor  # on the meta device

    def get_parameter(self, _: str) -> torch.Tensor:
        return self.parameter


def _is_concatenation(converter: WeightConverter, sources: Sequence[TensorSource], shape: tuple[int, ...]) -> bool:
    """Return True if the parameter's bytes are those of its sources, concatenated."""
    if not is_stack(converter):
        return False
    shapes = [source.shape for source in sources]
    if [type(operation) for operation in converter.operations] == [Concatenate]:
        shapes = [found[1:] for found in shapes if found[:1] == (1,)]  # one expert's part of a tensor of all experts
    is_same = all(found[1:] == shape[1:] for found in shapes) and len({source.dtype for source in sources}) == 1
    return is_same and len(shapes) == len(sources) and sum(found[0] for found in shapes) == shape[0]
