"""Converts an expert of a variant to the format of the base's slots, when it is read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from expert_store import (
    CheckpointError,
    ExpertKey,
    ExpertLayout,
    ExpertRecipe,
    ParameterRecipe,
    ParameterSpec,
    PartOf,
)
from server.kernels.expert import in_parts_order, transposed_names
from server.model.checkpoint.expert_parameters import parameter_shapes
from server.model.checkpoint.slot_matrices import SlotMatrix, find_matrices
from server.model.checkpoint.weight_formats import WeightFormat, encode, format_of

FLOATS = {torch.bfloat16, torch.float16, torch.float32, torch.float64}
Made = Sequence[tuple[ParameterSpec, ParameterRecipe]]


def converted(key: ExpertKey, made: Made, module: Any, layout: ExpertLayout) -> ExpertRecipe:
    """Return a recipe that converts plain numbers to the format of the base's slots when the expert is read.

    Args:
        made: the parameters as the variant stores them.
        module: the experts module.
        layout: of the base's slots.

    Raises:
        CheckpointError: the variant is quantised, or the base in a format to which Greenroom does not round.
    """
    shapes, transposed = parameter_shapes(module), transposed_names(module)
    if any(spec.name not in shapes or spec.dtype not in FLOATS for spec, _ in made):
        raise CheckpointError(
            f"{key} is quantised in another way than the base's experts; quantise it as they are, or store it in "
            "bfloat16"
        )
    plain = {spec.name: _PlainParameter(spec, recipe) for spec, recipe in made}
    if all(spec.name in shapes for spec in layout.parameters):
        return {name: parameter.recipe for name, parameter in plain.items()}
    weights = format_of(layout, shapes, transposed)
    if weights is not None:
        return _encoded(plain, layout, shapes, transposed, weights)
    matrices = find_matrices(layout, shapes, transposed)
    if matrices is None:
        raise CheckpointError(
            f"{key} is not quantised as the base's experts are; quantise it with the tool that made the base"
        )
    types = {matrix.kind.name for each in matrices.values() for matrix in each if not matrix.kind.can_round}
    if types:
        raise CheckpointError(
            f"{key} is not in {', '.join(sorted(types))} as the base's experts are, to which Greenroom does not round; "
            "give the variant as a GGUF file of the base's types"
        )
    recipes: dict[str, ParameterRecipe] = {}
    for name, found in matrices.items():
        parts = matrices.get(name.removesuffix("_bias"), ())
        rounded = _RoundedParameter(plain[name], module, name in transposed, found, is_in_parts=len(parts) > 1)
        sources = plain[name].source.sources
        recipes |= {
            spec.name: ParameterRecipe(sources, PartOf(rounded, spec.name)) for matrix in found for spec in matrix.specs
        }
        if not found:
            recipes[name] = ParameterRecipe(sources, PartOf(rounded, name))
    return recipes


def _encoded(
    plain: Mapping[str, _PlainParameter],
    layout: ExpertLayout,
    shapes: Mapping[str, tuple[int, ...]],
    transposed: Collection[str],
    weights: WeightFormat,
) -> ExpertRecipe:
    recipes: dict[str, ParameterRecipe] = {}
    for slot in layout.parameters:
        name = max((name for name in shapes if slot.name.startswith(name)), key=len)
        recipes[slot.name] = _EncodedParameter(plain[name], name in transposed, weights, slot.name).recipe
    return recipes


@dataclass(frozen=True)
class _PlainParameter:
    """A parameter of one expert, as it is stored."""

    spec: ParameterSpec
    source: ParameterRecipe

    def __call__(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        if self.source.assemble is not None:
            return self.source.assemble(tensors)
        return torch.cat([tensor.flatten() for tensor in tensors]).view(self.spec.shape)

    @property
    def recipe(self) -> ParameterRecipe:
        """The recipe to read it; the reader converts it to the dtype of the slot."""
        return ParameterRecipe(self.source.sources, self)


@dataclass(frozen=True)
class _EncodedParameter:
    """One tensor of the packed format of a parameter."""

    parameter: _PlainParameter
    is_transposed: bool
    weights: WeightFormat
    slot: str

    def __call__(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        name = self.parameter.spec.name
        transposed = (name,) if self.is_transposed else ()
        return encode({name: self.parameter(tensors)}, transposed, self.weights)[self.slot]

    @property
    def recipe(self) -> ParameterRecipe:
        return ParameterRecipe(self.parameter.source.sources, self)


@dataclass(frozen=True)
class _RoundedParameter:
    """A parameter as the tensors of the base's slots in GGUF's types."""

    parameter: _PlainParameter
    module: Any
    is_transposed: bool
    matrices: tuple[SlotMatrix, ...]  # none if it stays plain
    is_in_parts: bool  # as that of the matrix that a bias belongs to

    def __call__(
        self, sources: Sequence[torch.Tensor], into: Mapping[str, torch.Tensor] | None = None
    ) -> Mapping[str, torch.Tensor]:
        """See ``MakeParts``."""
        name, value = self.parameter.spec.name, self.parameter(sources)
        upright = value.mT if self.is_transposed and self.matrices else value
        if self.is_in_parts:
            upright = in_parts_order(self.module, name.removesuffix("_bias"), upright, 0)
        made, start = ({} if self.matrices else {name: upright}), 0
        for matrix in self.matrices:
            end = start + matrix.shape[0]
            made |= matrix.kind.quantise(matrix.name, upright[start:end].contiguous())
            start = end
        for key, target in (into or {}).items():
            target.copy_(made[key])
        return made
