"""Reads an expert variant: a folder with other weights for some experts of a model, and its routers.

The folder has tensors in safetensors, or the GGUF file of another model of the same shapes, of which only experts and
routers count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from expert_store import (
    CheckpointError,
    ExpertCatalog,
    ExpertKey,
    ExpertRecipe,
    FileName,
    TensorSource,
    Variant,
    find_shards,
    read_header_metadata,
    read_index,
    read_tensor,
)
from server.model.checkpoint.expert_parameters import ExpertParts, expert_parameters
from server.model.checkpoint.local_files import find_gguf, local_files
from server.model.checkpoint.tensor_map import CheckpointNames, experts_modules, layer_numbers, sort_tensors
from server.model.checkpoint.variant_recipes import FLOATS, converted
from server.model.checkpoint.variant_routers import REMOVED_FIELD, read_removed, variant_layer
from server.model.expert_variant import ExpertVariant, VariantLayer
from server.model.experts.router import RouterWeights
from server.model.opening.gguf_checkpoint import GgufCheckpoint
from server.model.quantised.matrix import StoredTensor, stored_parts

BASE_FIELD = "greenroom_base"  # metadata: fingerprint of the base model


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
        folder: or a GGUF file.
        name: under which it is served.
        version: see ``ExpertVariant``.

    Raises:
        CheckpointError: a file is damaged, or a tensor does not fit the base; the message names it.
    """
    file = find_gguf(str(folder), local_files(str(folder)) or ())
    index: Mapping[str, TensorSource | StoredTensor]
    if file is None:
        shards = find_shards(folder)
        index = read_index(shards)
        metadata = {key: value for shard in shards for key, value in read_header_metadata(shard).items()}
    else:
        index, metadata = GgufCheckpoint(file.parent, FileName(file.name)).stored_tensors(), {}
    given = metadata.get(BASE_FIELD)
    if given is not None and given != base.fingerprint:
        raise CheckpointError(
            f"{folder.name} was made for another base model: its {BASE_FIELD} is {given}, and this model is "
            f"{base.fingerprint}"
        )
    removed = read_removed(metadata.get(REMOVED_FIELD), base.catalog)
    if not index and not removed:
        raise CheckpointError(f"{folder.name} holds no tensor and removes no expert")
    tensors = _VariantTensors(base, index, is_model=file is not None)
    used = [source for name, source in index.items() if name not in tensors.ignored]
    for source in used:
        if isinstance(source, TensorSource):
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
    nbytes = sum(part.extent.nbytes for source in used for part in stored_parts(source))
    return VariantFiles(ExpertVariant(name, version, layers), recipes, len(used), nbytes)


class _VariantTensors:
    """The tensors of a variant, sorted into experts and routers.

    Args:
        is_model: whether the index is that of a complete model, whose other tensors of the trunk are ignored.

    Raises:
        CheckpointError: a tensor is neither of an expert nor of a router, or has the wrong size.
    """

    def __init__(self, base: BaseModel, index: Mapping[str, TensorSource | StoredTensor], *, is_model: bool = False):
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
        self.ignored: set[str] = set()
        unknown = list(tensors.unused)
        for name, source in tensors.trunk.items():
            place = roles.get(names.target(name)[0])
            if place is None and is_model:
                self.ignored.add(name)
            elif place is None or not isinstance(source, TensorSource) or source.dtype not in FLOATS:
                unknown += [part.name for part in stored_parts(source)]
            else:
                self.routers.setdefault(place[0], {})[place[1]] = read_tensor(source)
        if unknown:
            raise CheckpointError(
                f"{unknown[0]} is no tensor of an expert or a router of this model; "
                f"{len(index) - len(unknown)} of {len(index)} tensors applied"
            )

    def recipe(self, layer: int, expert: int) -> ExpertRecipe:
        """Return the recipe of one expert, in the stored layout of its layer."""
        name = self._module_of[layer]
        module, layout = self._modules[name], self._base.catalog.layers[layer].stored
        parts = self.experts[layer, expert]
        try:
            made = expert_parameters(self._base.model, name, module, expert, parts)
        except CheckpointError as error:
            own = self._base_parts().get((name, expert))
            if own is None:
                raise CheckpointError(
                    f"{error}; give complete experts over a base that is packed or quantised"
                ) from error
            made = expert_parameters(self._base.model, name, module, expert, _over(own, parts))
        if [spec for spec, _ in made] == list(layout.parameters):
            return {spec.name: recipe for spec, recipe in made}
        return converted(ExpertKey(layer, expert), made, module, layout)

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
