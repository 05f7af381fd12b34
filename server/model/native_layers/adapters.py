"""The adapters of a step as the native kernels read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ctypes import addressof
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from server.kernels.native.lora import LowRank, PartsTable, addresses
from server.kernels.native.structures.adapters import LoraLayer, LoraRouter, LoraRouting, LoraStep
from server.model.adapters.chosen_adapters import StepChoices
from server.model.adapters.prototypes import Vectors
from server.model.adapters.step_adapters import StepAdapters
from server.model.adapters.tables import tables_of
from server.model.blocks.adapter_places import NativeTarget
from server.model.lora_adapter import LoraAdapter


@dataclass
class _Adapter:
    """One adapter's additions to all decoder layers and to the end of the model."""

    layers: int  # address
    parts: Sequence[tuple[Any, str]]  # ``LoraPart``, with the name of the linear layer
    keeps: Sequence[object]
    vectors: Vectors | None = None  # by which routers score it, once one has chosen it

    def set_vectors(self, vectors: Vectors, targets: Mapping[str, NativeTarget]) -> None:
        """Let routers score the adapter."""
        if self.vectors is None:
            names = {name for _, name in self.parts}
            self.vectors = {name: (vectors[name] * targets[name].input_scale).contiguous() for name in names}
            for part, name in self.parts:
                part.vector = self.vectors[name].data_ptr()


class NativeAdapters:
    """Describes the adapters of steps to the kernels; keeps the tables of each adapter as long as the adapter.

    Args:
        targets: linear layers by name.
        experts: the number of each decoder layer's experts in the model, and how many they are; None without experts.
    """

    def __init__(self, targets: Mapping[str, NativeTarget], experts: Sequence[tuple[int, int] | None]):
        self.targets, self._experts = targets, experts
        self._absorbed = [name for name, target in targets.items() if target.is_absorbed]
        self._known: WeakKeyDictionary[LoraAdapter, _Adapter] = WeakKeyDictionary()
        offsets: dict[tuple[int, int], list[int]] = {}
        for target in targets.values():
            offsets.setdefault((target.layer, target.place), []).append(target.offset)
        self._offsets = {place: sorted(found) for place, found in offsets.items()}  # of modules computed together

    def step(self, adapters: StepAdapters) -> NativeStep:
        """Describe the adapters of a step.

        Raises:
            AdapterError: a router would choose adapters where all tokens of a sequence need the same.
        """
        described = [self.prepare(adapter) for adapter in adapters.adapters]
        if adapters.choices is not None:
            for name in self._absorbed:
                adapters.choices.refuse(name)
            for adapter, vectors in zip(described, adapters.choices.vectors(), strict=True):
                if vectors:
                    adapter.set_vectors(vectors, self.targets)
        return NativeStep(described, adapters, len(self._experts))

    def prepare(self, adapter: LoraAdapter) -> _Adapter:
        """Return an adapter's tables, which are made at the first call."""
        known = self._known.get(adapter)
        if known is None:
            known = self._known[adapter] = self._describe(adapter)
        return known

    def _describe(self, adapter: LoraAdapter) -> _Adapter:
        found: dict[tuple[int, int], list[tuple[LowRank, int, str]]] = {}
        for name, parts in adapter.linears.items():
            target = self.targets.get(name)
            if target is None:  # in a mixer that runs as a module
                continue
            found.setdefault((target.layer, target.place), []).extend((part, target.offset, name) for part in parts)
        table = PartsTable.of([(part, offset) for part, offset, _ in parts] for parts in found.values())
        names = [name for parts in found.values() for _, _, name in parts]
        for row, name in zip(table.rows, names, strict=True):
            target = self.targets[name]
            row.module = self._offsets[target.layer, target.place].index(target.offset)
        places = dict(zip(found, table.parts, strict=True))
        layers = (LoraLayer * (len(self._experts) + 1))()
        keeps: list[object] = [table, layers]
        for (number, place), additions in places.items():
            layers[number].places[place] = additions
        for layer, experts in zip(layers, self._experts, strict=False):  # the end of the model has none
            if experts is None:
                continue
            tables = tables_of(adapter).experts(*experts)
            layer.first, layer.second = addresses((tables.first, tables.second)).tolist()
            keeps.append(tables)
        rows = [*zip(table.rows, names, strict=True)]
        return _Adapter(addressof(layers), rows, keeps)


class NativeStep:
    """The adapters of one step; the address of a ``LoraStep`` and what it refers to."""

    def __init__(self, adapters: Sequence[_Adapter], step: StepAdapters, num_layers: int):
        self._adapters, self._factors = adapters, np.ascontiguousarray(step.factors)
        self._layers = np.array([adapter.layers for adapter in adapters], dtype=np.uint64)
        self._choices = None if step.choices is None else _NativeChoices(step.choices)
        self._call = LoraStep(
            self._layers.ctypes.data,
            self._factors.ctypes.data,
            len(adapters),
            num_layers,
            None if self._choices is None else self._choices.address,
        )

    @property
    def address(self) -> int:
        return addressof(self._call)


class _NativeChoices:
    """The choosers of one step; the address of a ``LoraRouting``, which writes to the step's totals."""

    def __init__(self, choices: StepChoices):
        self._choices = choices
        candidates = choices.candidates.ctypes.data
        self._routers = (LoraRouter * len(choices.choosers))(
            *(
                LoraRouter(
                    candidates + number * choices.candidates.shape[1],
                    chooser.top_k,
                    int(chooser.is_signed),
                    chooser.temperature,
                )
                for number, chooser in enumerate(choices.choosers)
            )
        )
        self._call = LoraRouting(
            addressof(self._routers),
            choices.chooser_of_token.ctypes.data,
            choices.totals.ctypes.data,
            choices.counts.ctypes.data,
        )

    @property
    def address(self) -> int:
        return addressof(self._call)
