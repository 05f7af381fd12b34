"""Maps the tensors of a hub checkpoint to trunk parameters and experts.

transformers defines how hub names become module parameters (``get_model_conversion_mapping``). This module applies the
same mapping to the file headers only, so that the location of every expert is known before any is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    apply_renamings,
    rename_source_key,
)

from expert_store import (
    CheckpointError,
    ExpertCatalog,
    ExpertLayout,
    LayerEntry,
    ParameterSpec,
    TensorSource,
)
from server.model.architecture import text_modules
from server.model.checkpoint.expert_linears import find_expert_linear
from server.model.checkpoint.expert_parameters import (
    ExpertCounts,
    ExpertParameter,
    ExpertParts,
    expert_parameters,
    split_by_expert,
)
from server.model.checkpoint.num_layers import check_num_layers
from server.model.errors import ModelError, TrunkShapeError, in_mlx_format, incomplete
from server.model.experts.replacements import conversions
from server.model.quantised import mlx
from server.model.quantised.matrix import StoredTensor, group_by_matrix
from server.model.quantised.packed_matrix import PackedMatrix
from server.model.quantised.scheme import find_scheme

EXPERT_NUMBER = re.compile(r"\.experts?\.(\d+)\.")  # in the names of most
SAMPLE_NUMBERS = (0, 1, 10, 100)  # what is so for these experts is so for all of a layer
PackedMatrices = Mapping[str, PackedMatrix]  # by hub name


@dataclass(frozen=True)
class CheckpointMap:
    """The tensors of a checkpoint, sorted into trunk and experts."""

    trunk: dict[str, TensorSource | StoredTensor]  # by the hub name without quantisation
    catalog: ExpertCatalog
    unused: list[str]  # hub names that the model does not use
    packed: PackedMatrices = field(default_factory=dict)  # matrices of the trunk that stay quantised


@dataclass(frozen=True)
class SortedTensors:
    """Tensors of a checkpoint, sorted into trunk and experts."""

    trunk: dict[str, TensorSource | StoredTensor]
    experts: dict[tuple[str, int], ExpertParts]  # by module and expert
    unused: list[str]


def experts_modules(model: PreTrainedModel) -> dict[str, Any]:
    """Find the text part's modules of routed experts that use transformers' experts interface, by name."""
    marks = ("is_transposed", "has_gate", "has_bias", "_is_expert_parallel")
    return {name: module for name, module in text_modules(model) if all(hasattr(module, mark) for mark in marks)}


def layer_numbers(names: Sequence[str]) -> dict[str, int]:
    """Return the layer of each experts module: the number in its name, or its rank if numbers are missing or equal."""
    found = [re.search(r"\.(\d+)\.", name) for name in names]
    numbers = [int(match.group(1)) if match else -1 for match in found]
    if -1 in numbers or len(set(numbers)) < len(numbers):
        numbers = list(range(len(names)))
    return dict(zip(names, numbers, strict=True))


def map_checkpoint(model: PreTrainedModel, index: Mapping[str, TensorSource | StoredTensor]) -> CheckpointMap:
    """Sort the tensors of a checkpoint into trunk and experts.

    Args:
        model: the transformers model on the meta device, with its experts' parameters.
        index: all tensors of the checkpoint.

    Raises:
        ModelError: the model has no experts that can be paged, the checkpoint has more layers than the config, or MLX
            converted it from another family than those that are supported.
        CheckpointError: a tensor of an expert is missing or has the wrong size; the message names it.
    """
    modules = experts_modules(model)
    if modules and any(mlx.STACK in name for name in index):
        if model.config.model_type not in mlx.FAMILIES:
            raise in_mlx_format(Path(model.config.name_or_path).name or type(model).__name__)
        index = mlx.split_stacks(index, {module.num_experts for module in modules.values()})
    tensors = sort_tensors(model, index)
    check_num_layers(model, tensors.trunk, tensors.unused)
    if not modules:
        raise ModelError(
            f"{type(model).__name__} has no routed experts that Greenroom can page; give a Mixture-of-Experts model"
        )
    numbers = layer_numbers(list(modules))
    layers = {
        numbers[name]: _layer_entry(
            model, name, module, [tensors.experts.get((name, e), {}) for e in range(module.num_experts)]
        )
        for name, module in modules.items()
    }
    return CheckpointMap(tensors.trunk, ExpertCatalog(layers), tensors.unused)


def _layer_entry(
    model: nn.Module, name: str, module: Any, experts: Sequence[Mapping[str, ExpertParameter]]
) -> LayerEntry:
    specs: dict[str, ParameterSpec] = {}
    recipes = []
    for expert, parts in enumerate(experts):
        made = expert_parameters(model, name, module, expert, parts)
        for spec, _ in made:
            specs.setdefault(spec.name, spec)
        recipes.append({spec.name: recipe for spec, recipe in made})
    return LayerEntry(ExpertLayout(tuple(specs.values())), tuple(recipes))


def sort_tensors(
    model: PreTrainedModel, index: Mapping[str, TensorSource | StoredTensor], *, allows_more_experts: bool = False
) -> SortedTensors:
    """Sort tensors under the names of a checkpoint into the trunk's and the experts'.

    Args:
        model: the transformers model on the meta device, with its experts' parameters.
        index: some or all tensors of a checkpoint.
        allows_more_experts: whether a layer may have more experts than the model.

    Raises:
        CheckpointError: a tensor of experts has the wrong size; the message names it.
    """
    modules, names = experts_modules(model), CheckpointNames(model)

    def counts_of(module: Any) -> ExpertCounts | None:
        return None if allows_more_experts else ExpertCounts.of(module)

    owners = {
        f"{name}.{parameter}": (name, parameter)
        for name, module in modules.items()
        for parameter, _ in module.named_parameters(recurse=False)
    }
    trunk: dict[str, TensorSource | StoredTensor] = {}
    unused: list[str] = []
    experts: dict[tuple[str, int], ExpertParts] = {}
    for source in group_by_matrix(find_scheme(model.config, type(model).__name__), index).values():
        target, pattern = names.target(source.name)
        if target not in owners:
            linear = find_expert_linear(modules, model.base_model_prefix, target)
            if linear is not None:
                counts, own = counts_of(modules[linear.module]), f"{linear.module}.{linear.parameter}"
                for expert, part in split_by_expert(source, linear.expert, counts, parameter=own):
                    place = experts.setdefault((linear.module, expert), {})
                    linears = place.setdefault(linear.parameter, ExpertParameter(None, is_linear=True))
                    linears.sources.append((linear.order, part))
            elif target in names.parameters:
                _check_numbers(source, names.parameters[target])
                trunk[source.name] = source
            else:
                unused.append(source.name)
            continue
        _check_numbers(source, names.parameters[target])
        name, parameter = owners[target]
        num_experts = modules[name].num_experts
        rank = names.parameters[target].ndim - 1
        converter = names.converters_by_pattern.get(pattern) if pattern else None
        order = converter.source_patterns.index(pattern) if converter else 0
        number = names.expert_index(source.name, pattern)
        if converter and number is not None and len(converter.target_patterns) > 1:
            if allows_more_experts:
                raise CheckpointError(f"{source.name} is one of two kinds of experts, of which none can be added")
            share, number = min(number // num_experts, len(converter.target_patterns) - 1), number % num_experts
            name, parameter = owners[target.replace(converter.target_patterns[0], converter.target_patterns[share])]
        counts, own = counts_of(modules[name]), f"{name}.{parameter}"
        for expert, part in split_by_expert(source, number, counts, rank, parameter=own):
            place = experts.setdefault((name, expert), {})
            place.setdefault(parameter, ExpertParameter(converter)).sources.append((order, part))
    return SortedTensors(trunk, experts, unused)


def missing_parameters(model: Any, trunk: Iterable[str]) -> list[str]:
    """Find the trunk's parameters that a checkpoint lacks, except those that are tied or initialised.

    Args:
        model: the model on the meta device, with tied weights and its experts' parameters.
        trunk: hub names of the tensors in the checkpoint.
    """
    names = CheckpointNames(model)
    targets = {target for name in trunk for target in names.targets(name)}
    present = {id(tensor) for name, tensor in names.parameters.items() if name in targets}
    routed = {
        f"{name}.{parameter}"
        for name, module in experts_modules(model).items()
        for parameter, _ in module.named_parameters(recurse=False)
    }
    ignored = model._keys_to_ignore_on_load_missing or ()  # noqa: SLF001
    return sorted(
        name
        for name, tensor in names.parameters.items()
        if name not in targets | routed
        and id(tensor) not in present
        and not any(re.search(pattern, name) for pattern in ignored)
    )


def check_trunk_tensors(name: str, model: PreTrainedModel, found: CheckpointMap) -> None:
    """Check that a checkpoint has the trunk that the config describes, before anything of its sizes is allocated.

    Args:
        name: of the checkpoint.
        model: the model on the meta device, with its experts' parameters; this ties its weights.

    Raises:
        ModelError: a parameter of the trunk is missing, or has another shape than its tensor.
    """
    model.tie_weights()
    missing = missing_parameters(model, [*found.trunk, *found.packed])
    if missing:
        raise incomplete(name, missing)
    parameters = model.state_dict(keep_vars=True)
    for tensor, parameter in renamed(model, found.trunk).items():
        shape, wanted = list(found.trunk[tensor].shape), list(parameters[parameter].shape)
        if shape != wanted:
            are_alike = len(shape) == len(wanted)
            others = [each for each, size in enumerate(wanted) if not are_alike or shape[each] != size]
            raise TrunkShapeError(
                f"{name} does not match its config.json: {parameter} has shape {shape}, not {wanted}; download the "
                "checkpoint again",
                parameter,
                others,
            )


def renamed(model: PreTrainedModel, names: Iterable[str]) -> dict[str, str]:
    """Map hub names to parameter names, for tensors that become a parameter without conversion."""
    known = CheckpointNames(model)
    targets = {name: known.target(name) for name in names}
    return {
        name: target for name, (target, pattern) in targets.items() if pattern is None and target in known.parameters
    }


class CheckpointNames:
    """Applies transformers' renaming to the checkpoint keys of one model."""

    def __init__(self, model: nn.Module):
        mapping = [*get_model_conversion_mapping(model), *conversions(model)]
        self._renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        self._prefix = model.base_model_prefix
        self._common_targets: dict[tuple[str, str], tuple[str, str | None] | None] = {}
        self._has_own_number: dict[tuple[str, str], bool] = {}  # whether the expert's number is that in the name
        self.parameters = model.state_dict(keep_vars=True)
        self.converters_by_pattern = {
            pattern: converter for converter in self._converters for pattern in converter.source_patterns
        }

    def target(self, name: str) -> tuple[str, str | None]:
        """Return the parameter that a hub tensor goes into, and the converter's pattern that it matches."""
        found = EXPERT_NUMBER.search(name)
        if found is None:
            return self._target(name)
        return self._common_target(name[: found.start(1)], name[found.end(1) :]) or self._target(name)

    def _common_target(self, before: str, after: str) -> tuple[str, str | None] | None:
        """Return the target of all tensors whose names differ in the expert's number; None if they have none.

        A large model has 100,000 such tensors, and transformers tries each of its patterns on each name.

        Args:
            before: the name up to the number.
            after: the rest of the name.
        """
        if (before, after) not in self._common_targets:
            found = {self._target(f"{before}{number}{after}") for number in SAMPLE_NUMBERS}
            self._common_targets[before, after] = found.pop() if len(found) == 1 else None
        return self._common_targets[before, after]

    def _target(self, name: str) -> tuple[str, str | None]:
        target, pattern = rename_source_key(name, self._renamings, self._converters, self._prefix, self.parameters)
        if target not in self.parameters and name in self.parameters:
            return name, None
        return target, pattern

    def targets(self, name: str) -> set[str]:
        """Return all parameters that take a part of a hub tensor, such as queries, keys and values of a fused one."""
        target, pattern = self.target(name)
        parts = self.converters_by_pattern[pattern].target_patterns if pattern in self.converters_by_pattern else []
        return {target} | {target.replace(first, part) for first in parts for part in parts if first in target}

    def expert_index(self, name: str, pattern: str | None) -> int | None:
        """Return the expert that a tensor belongs to; None for a tensor that holds all experts."""
        if pattern is None or "*" not in pattern:
            return None
        found = EXPERT_NUMBER.search(name)
        if found is None:
            return self._expert_index(name, pattern)
        ends = name[: found.start(1)], name[found.end(1) :]
        if ends not in self._has_own_number:
            self._has_own_number[ends] = all(
                self._expert_index(f"{ends[0]}{number}{ends[1]}", pattern) == number for number in SAMPLE_NUMBERS
            )
        return int(found[1]) if self._has_own_number[ends] else self._expert_index(name, pattern)

    def _expert_index(self, name: str, pattern: str) -> int:
        renamed = apply_renamings(name, self._renamings)
        match = re.search(pattern.replace("*.", r"(\d+)\."), renamed)
        if match is None:
            raise CheckpointError(f"{name} has no expert number where {pattern} expects one")
        return int(match.group(match.lastindex or 1))


def _check_numbers(source: TensorSource | StoredTensor, parameter: torch.Tensor) -> None:
    """Refuse integers and codes of a quantisation where the model has floating-point numbers, and the reverse."""
    if isinstance(source, TensorSource):
        is_float = source.dtype.is_floating_point and source.dtype.itemsize > 1
        if is_float != parameter.is_floating_point():
            found, wanted = (str(dtype).removeprefix("torch.") for dtype in (source.dtype, parameter.dtype))
            raise CheckpointError(
                f"{source.name} is stored as {found}, and the model needs {wanted}; the checkpoint is damaged, or "
                "quantised in a form that its config.json does not tell"
            )
