"""Reads an expert variant: a folder of safetensors with other weights for some experts of a model, and its routers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from expert_store import (
    CheckpointError,
    ExpertCatalog,
    ExpertKey,
    ExpertRecipe,
    ParameterRecipe,
    ParameterSpec,
    TensorSource,
    Variant,
    find_shards,
    read_header_metadata,
    read_index,
    read_tensor,
)
from server.kernels.expert import transposed_names
from server.model.checkpoint.expert_parameters import ExpertParts, expert_parameters, parameter_shapes
from server.model.checkpoint.tensor_map import CheckpointNames, experts_modules, layer_numbers, sort_tensors
from server.model.checkpoint.variant_routers import REMOVED_FIELD, read_removed, variant_layer
from server.model.checkpoint.weight_formats import WeightFormat, encode, format_of
from server.model.expert_variant import ExpertVariant, VariantLayer
from server.model.experts.router import RouterWeights
from server.model.quantised.matrix import stored_parts

BASE_FIELD = "greenroom_base"  # metadata: fingerprint of the base model
FLOATS = {torch.bfloat16, torch.float16, torch.float32, torch.float64}


@dataclass(frozen=True)
class BaseModel:
    """A served model, as far as its variants depend on it.

    Args:
        model: on the meta device, with its experts' parameters.
        catalog: its own experts.
        routers: by layer.
        fingerprint: identifies its weights (``fingerprint.py``).
        index: the tensors of its checkpoint, from which an expert gets what a variant lacks; empty for a pack.
    """

    model: PreTrainedModel
    catalog: ExpertCatalog
    routers: Mapping[int, RouterWeights]
    fingerprint: str
    index: Mapping[str, TensorSource] = field(default_factory=dict)


@dataclass(frozen=True)
class VariantFiles:
    """A variant whose files were checked, and the recipes of its experts."""

    variant: ExpertVariant
    recipes: Variant
    num_tensors: int
    nbytes: int  # of all tensors


def read_variant(folder: Path, name: str, version: str, base: BaseModel) -> VariantFiles:
    """Read the headers and routers of a variant, and check that it fits the base model.

    Tensors have the names of the base model's checkpoint. Experts beyond the base's own are added; they need rows of
    the router. The metadata of a file may name the base's fingerprint, and experts to remove.

    Args:
        name: under which it is served.
        version: see ``ExpertVariant``.

    Raises:
        CheckpointError: a file is damaged, or a tensor does not fit the base; the message names it.
    """
    shards = find_shards(folder)
    index = read_index(shards)
    metadata = {key: value for shard in shards for key, value in read_header_metadata(shard).items()}
    given = metadata.get(BASE_FIELD)
    if given is not None and given != base.fingerprint:
        raise CheckpointError(
            f"{folder.name} was made for another base model: its {BASE_FIELD} is {given}, and this model is "
            f"{base.fingerprint}"
        )
    removed = read_removed(metadata.get(REMOVED_FIELD), base.catalog)
    if not index and not removed:
        raise CheckpointError(f"{folder.name} holds no tensor and removes no expert")
    tensors = _VariantTensors(base, index)
    for source in index.values():
        _refuse_non_finite(source)
    recipes = {key: tensors.recipe(*key) for key in sorted(tensors.experts)}
    layers: dict[int, VariantLayer] = {}
    for layer in base.catalog.layers:
        own = {expert for number, expert in recipes if number == layer}
        gone = removed.get(layer, frozenset())
        if own or gone or layer in tensors.routers:
            keys = _keys(layer, len(base.catalog.layers[layer].experts), own, version)
            router = tensors.routers.get(layer, {})
            layers[layer] = variant_layer(base.model, base.routers.get(layer), keys, router, gone)
    nbytes = sum(source.extent.nbytes for source in index.values())
    return VariantFiles(ExpertVariant(name, version, layers), recipes, len(index), nbytes)


class _VariantTensors:
    """The tensors of a variant, sorted into experts and routers.

    Raises:
        CheckpointError: a tensor is neither of an expert nor of a router, or has the wrong size.
    """

    def __init__(self, base: BaseModel, index: Mapping[str, TensorSource]):
        self._base = base
        self._modules = experts_modules(base.model)
        self._numbers = layer_numbers(list(self._modules))
        self._module_of = {number: name for name, number in self._numbers.items()}
        self._of_base: Mapping[tuple[str, int], ExpertParts] | None = None
        tensors = sort_tensors(base.model, index, allows_more_experts=True)
        self.experts = {(self._numbers[module], expert): parts for (module, expert), parts in tensors.experts.items()}
        roles = {name: (layer, role) for layer, router in base.routers.items() for role, name in router.names.items()}
        names = CheckpointNames(base.model)
        self.routers: dict[int, dict[str, torch.Tensor]] = {}
        unknown = list(tensors.unused)
        for name, source in tensors.trunk.items():
            place = roles.get(names.target(name)[0])
            if place is None or not isinstance(source, TensorSource) or source.dtype not in FLOATS:
                unknown += [part.name for part in stored_parts(source)]
            else:
                self.routers.setdefault(place[0], {})[place[1]] = read_tensor(source)
        if unknown:
            raise CheckpointError(
                f"{unknown[0]} is no tensor of an expert or a router of this model; "
                f"{len(index) - len(unknown)} of {len(index)} tensors applied"
            )

    def recipe(self, layer: int, expert: int) -> ExpertRecipe:
        """Return the recipe of one expert, in the layout of its layer."""
        name = self._module_of[layer]
        module, layout = self._modules[name], self._base.catalog.layout(layer)
        parts = self.experts[layer, expert]
        try:
            made = expert_parameters(self._base.model, name, module, expert, parts)
        except CheckpointError:
            own = self._base_parts().get((name, expert))
            if own is None:
                raise
            made = expert_parameters(self._base.model, name, module, expert, _over(own, parts))
        if [spec for spec, _ in made] == list(layout.parameters):
            return {spec.name: recipe for spec, recipe in made}
        return self._converted(ExpertKey(layer, expert), made, module)

    def _converted(
        self, key: ExpertKey, made: Sequence[tuple[ParameterSpec, ParameterRecipe]], module: Any
    ) -> ExpertRecipe:
        """Return a recipe that converts plain numbers to the format of the base's slots when the expert is read."""
        layout = self._base.catalog.layout(key.layer)
        shapes, transposed = parameter_shapes(module), transposed_names(module)
        if any(spec.name not in shapes or spec.dtype not in FLOATS for spec, _ in made):
            raise CheckpointError(f"{key} is quantised in another way than the base's experts; store it in bfloat16")
        plain = {spec.name: (spec, recipe) for spec, recipe in made}
        if all(spec.name in shapes for spec in layout.parameters):
            return {name: _PlainParameter(spec, recipe).recipe for name, (spec, recipe) in plain.items()}
        weights = format_of(layout, shapes, transposed)
        if weights is None:
            raise CheckpointError(
                f"{key} is not quantised as the base's experts are; quantise it with the tool that made the base"
            )
        recipes: dict[str, ParameterRecipe] = {}
        for slot in layout.parameters:
            name = max((name for name in shapes if slot.name.startswith(name)), key=len)
            parameter = _PlainParameter(*plain[name])
            recipes[slot.name] = _EncodedParameter(parameter, name in transposed, weights, slot.name).recipe
        return recipes

    def _base_parts(self) -> Mapping[tuple[str, int], ExpertParts]:
        if self._of_base is None:
            self._of_base = sort_tensors(self._base.model, self._base.index).experts
        return self._of_base


def _over(own: ExpertParts, parts: ExpertParts) -> ExpertParts:
    """Return an expert of the base in which a variant's tensors take the place of the base's."""
    merged = {**own, **parts}
    for name, part in parts.items():
        given = {order for order, _ in part.sources}
        kept = [source for source in own[name].sources if source[0] not in given] if name in own else []
        merged[name] = replace(part, sources=[*kept, *part.sources])
    return merged


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


def _keys(layer: int, num_own: int, own: set[int], version: str) -> list[ExpertKey]:
    """Return the experts of a layer, those that a variant adds included.

    Args:
        own: experts that have weights of the variant's own.
    """
    num_experts = num_own + sum(expert >= num_own for expert in own)
    if own and max(own) >= num_experts:
        raise CheckpointError(f"layer {layer} gets expert {max(own)}, but not those before it; number experts in turn")
    return [
        ExpertKey(layer, expert, version) if expert in own else ExpertKey(layer, expert)
        for expert in range(num_experts)
    ]


def _refuse_non_finite(source: TensorSource) -> None:
    if source.dtype in FLOATS and not read_tensor(source).isfinite().all():
        raise CheckpointError(f"{source.name} holds NaN or infinity; the file is damaged, or training diverged")
