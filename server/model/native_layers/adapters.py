"""The adapters of a step as the native kernels read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ctypes import addressof
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from server.kernels.native.lora import LoraLayer, LoraParts, LoraStep, LowRank, PartsTable, addresses
from server.model.lora.adapter import LoraAdapter
from server.model.lora.step_adapters import StepAdapters
from server.model.lora.tables import tables_of

HEAD = "head"


class NativeTarget(NamedTuple):
    """A linear layer in the place where the kernels compute it."""

    layer: int
    matrix: str  # a field of ``LoraLayer``, or ``HEAD``
    inputs: int
    outputs: int
    offset: int = 0  # of its outputs, for one of several that are computed together


@dataclass(frozen=True)
class _Adapter:
    """One adapter's additions to all decoder layers and to the head."""

    layers: int  # address
    head: LoraParts
    keeps: Sequence[object]


class NativeAdapters:
    """Describes the adapters of steps to the kernels; keeps the tables of each adapter as long as the adapter.

    Args:
        targets: linear layers by name.
        experts: the number of each decoder layer's experts in the model, and how many they are; None without experts.
    """

    def __init__(self, targets: Mapping[str, NativeTarget], experts: Sequence[tuple[int, int] | None]):
        self.targets, self._experts = targets, experts
        self._known: WeakKeyDictionary[LoraAdapter, _Adapter] = WeakKeyDictionary()

    def step(self, adapters: StepAdapters) -> NativeStep:
        """Describe the adapters of a step."""
        return NativeStep([self.prepare(adapter) for adapter in adapters.adapters], adapters)

    def prepare(self, adapter: LoraAdapter) -> _Adapter:
        """Return an adapter's tables, which are made at the first call."""
        known = self._known.get(adapter)
        if known is None:
            known = self._known[adapter] = self._describe(adapter)
        return known

    def _describe(self, adapter: LoraAdapter) -> _Adapter:
        found: dict[tuple[int, str], list[tuple[LowRank, int]]] = {}
        for name, parts in adapter.linears.items():
            target = self.targets[name]
            found.setdefault((target.layer, target.matrix), []).extend((part, target.offset) for part in parts)
        table = PartsTable.of(found.values())
        places = dict(zip(found, table.parts, strict=True))
        layers = (LoraLayer * len(self._experts))()
        keeps: list[object] = [table, layers]
        for (number, matrix), parts in places.items():
            if matrix != HEAD:
                setattr(layers[number], matrix, parts)
        for layer, experts in zip(layers, self._experts, strict=True):
            if experts is None:
                continue
            tables = tables_of(adapter).experts(*experts)
            layer.first, layer.second = addresses((tables.first, tables.second)).tolist()
            keeps.append(tables)
        return _Adapter(addressof(layers), places.get((0, HEAD), LoraParts()), keeps)


class NativeStep:
    """The adapters of one step; the address of a ``LoraStep`` and what it refers to."""

    def __init__(self, adapters: Sequence[_Adapter], step: StepAdapters):
        self._adapters, self._factors = adapters, np.ascontiguousarray(step.factors)
        self._layers = np.array([adapter.layers for adapter in adapters], dtype=np.uint64)
        self._heads = (LoraParts * len(adapters))(*(adapter.head for adapter in adapters))
        self._call = LoraStep(
            self._layers.ctypes.data, addressof(self._heads), self._factors.ctypes.data, len(adapters)
        )

    @property
    def address(self) -> int:
        return addressof(self._call)
