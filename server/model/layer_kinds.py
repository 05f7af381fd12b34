"""LayerKinds: the decoder layers of a model by kind, so that what one layer shows is known of all that are alike."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedModel

from server.model.architecture import decoder_layers, text_body
from server.model.attention.kv_cache import KVGroup
from server.model.experts.router import RouterWeights
from server.model.quantised.linear import QuantisedLinear

NUMBER = "layer_idx"  # attribute of modules: the number of their layer in a cache
PLACES = {NUMBER, "layer", "name", "attn_residual_add_idx", "mlp_residual_add_idx"}  # attributes that tell the place
SHARED, KEPT = "num_kv_shared_layers", "store_full_length_kv"  # such an attribute, where no layer takes others' keys
OF_PLACES = "layers"  # end of the names of lists in a config that may hold numbers of layers
LINEARS = (nn.Linear, QuantisedLinear)
T = TypeVar("T")


class LayerKinds:
    """The layers of a model. Those of one kind differ only in their weights, in the formats of these, and in place.

    Args:
        model: with or without weights.

    Attributes:
        layer_of: for each layer, the first one of its kind.
        count: the first layers that have one of each kind.
    """

    def __init__(self, model: PreTrainedModel):
        self._model = model
        self._layers: Any = decoder_layers(text_body(model)) or ()
        config = model.config.get_text_config()
        settings = _settings_of_layers(config, len(self._layers))
        places = PLACES if getattr(config, SHARED, 0) else {*PLACES, KEPT}
        kinds = [(kind, _kind_of(layer, places)) for kind, layer in zip(settings, self._layers, strict=True)]
        self.layer_of = [kinds.index(kind) for kind in kinds]
        self.count = 1 + max(self.layer_of, default=-1)
        self.layer_of[: self.count] = range(self.count)
        self._modules: list[dict[nn.Module, nn.Module]] = []  # of each layer, by that of the first layer of its kind
        self._numbers: list[dict[int, int]] = []  # of each layer in caches, likewise
        named = [dict(layer.named_modules()) for layer in self._layers]
        for own, first in zip(named, self.layer_of, strict=True):
            pairs = [(each, own[name]) for name, each in named[first].items()]
            self._modules.append(dict(pairs))
            self._numbers.append(dict(found for pair in pairs if (found := _numbers_of(*pair)) is not None))

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Remove the layers after the first ones that have one of each kind, within the context."""
        others = list(self._layers[self.count :])
        if others:
            del self._layers[self.count :]
        try:
            yield
        finally:
            if others:
                self._layers.extend(others)

    def covers(self, numbers: Collection[int]) -> bool:
        """Return True if these numbers of the first layers in caches are known for the other layers too."""
        return all(any(number in known for known in self._numbers[: self.count]) for number in numbers)

    def spread(self, record: Mapping[Any, T]) -> dict[Any, T]:
        """Return a record of modules of the first layers as one of the modules of all layers, in their order."""
        outside = set(record).difference(*self._modules[: self.count])
        found = {module: value for module, value in record.items() if module in outside}
        for own in self._modules:
            found |= {own[module]: value for module, value in record.items() if module in own}
        return found

    def spread_numbers(self, record: Mapping[int, T]) -> dict[int, T]:
        """Return a record of the first layers' numbers in caches as one of all layers' numbers, in their order."""
        return {own[number]: value for own in self._numbers for number, value in record.items() if number in own}

    def spread_group(self, group: KVGroup) -> KVGroup:
        """Return a group of the first layers as one of all layers."""
        return replace(group, shapes=self.spread_numbers(group.shapes))

    def has_first(self, module: Any) -> bool:
        """Return True for a module of one of the first layers."""
        return any(module in known for known in self._modules[: self.count])

    def spread_routers(
        self, routers: Mapping[int, RouterWeights], layers: Mapping[Any, int]
    ) -> dict[int, RouterWeights]:
        """Return the routers of the first layers and those of all that are like them, by layer.

        Args:
            layers: the modules of experts, and their layers.
        """
        names = {each: name for name, each in self._model.named_modules()}
        by_layer = {layer: module for module, layer in layers.items()}
        found: dict[int, RouterWeights] = {}
        for number, own in enumerate(self._modules):
            first = f"{names[self._layers[self.layer_of[number]]]}."
            prefix = f"{names[self._layers[number]]}."
            for layer, router in routers.items():
                if by_layer[layer] in own:
                    found[layers[own[by_layer[layer]]]] = _renamed(self._model, router, first, prefix)
        return found


def _renamed(model: nn.Module, router: RouterWeights, first: str, prefix: str) -> RouterWeights:
    """Return the router of another layer in the place of a router."""
    if first == prefix:
        return router
    names = {role: prefix + name.removeprefix(first) for role, name in router.names.items()}
    found: dict[str, Any] = {}
    for role, name in names.items():
        path, _, own = name.rpartition(".")
        found[role] = getattr(model.get_submodule(path), own)
    if "correction" in found:
        found["correction"] = found["correction"].detach().flatten()
    return replace(router.with_tensors(found), names=names)


def _settings_of_layers(config: Any, count: int) -> Sequence[Any]:
    """Return what a config says of each layer, of which some the model reads and not the layer's modules."""
    known = vars(config).items()
    lists = [(key, value) for key, value in known if isinstance(value, list | tuple) and len(value) == count]
    return [*zip(*(_without_places(*each) for each in lists), strict=True)] or [()] * count


def _without_places(key: str, values: Sequence[Any]) -> Sequence[Any]:
    """Return a list about layers with its numbers of layers, such as those whose keys are taken, counted from its own.

    Numbers of layers are none behind the own one, and more layers are alike if they are counted so.
    """
    are_places = all(type(value) is int and 0 <= value <= place for place, value in enumerate(values))
    if not key.endswith(OF_PLACES) or not are_places or max(values) <= 1:  # 0 and 1 are no and yes
        return values
    distances = [place - value for place, value in enumerate(values)]
    return distances if len({*distances}) < len({*values}) else values


def _numbers_of(first: nn.Module, own: nn.Module) -> tuple[int, int] | None:
    numbers = getattr(first, NUMBER, None), getattr(own, NUMBER, None)
    return numbers if all(isinstance(number, int) for number in numbers) else None  # type: ignore[return-value]


def _kind_of(layer: nn.Module, places: Collection[str]) -> Hashable:
    """Return what distinguishes a layer from others: its modules, their parameters and settings, but not its place."""
    return tuple(
        (name, *(_linear_kind(module) if type(module) in LINEARS else _module_kind(module, places)))
        for name, module in layer.named_modules()
    )


def _linear_kind(linear: Any) -> tuple[Hashable, ...]:
    return LINEARS, linear.in_features, linear.out_features, linear.bias is None


def _module_kind(module: nn.Module, places: Collection[str]) -> tuple[Hashable, ...]:
    kind: Any = type(module)  # mypy takes no type for hashable
    parameters: Hashable = tuple((name, tuple(value.shape)) for name, value in module.named_parameters(recurse=False))
    settings: Hashable = tuple(
        (key, value)
        for key, value in vars(module).items()
        if isinstance(value, bool | int | float | str) and key not in places
    )
    return kind, parameters, settings
