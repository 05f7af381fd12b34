"""PromptStream: the next layer's experts for a piece of a prompt, while those of a layer are read and computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

from expert_store.keys import ExpertKey
from expert_store.prefetching.coactivation import IntArray
from expert_store.prefetching.prefetcher import Gate, KeysOf, PrefetchTarget

MOST = 0.75  # of a layer's experts: a piece that uses so many is taken to use all of the next layer


class PromptStream:
    """Keeps a slow source busy during prompts, whose many tokens use most experts of each layer.

    Which ones tells the next layer's gate. Where there is none, all are asked for once most of a layer are used.

    Args:
        store: reads the experts.
        experts_per_layer: number of experts of each layer, in the order in which layers run.
        gates: by layer, the gate that predicts the next layer's experts.
    """

    def __init__(self, store: PrefetchTarget, experts_per_layer: Mapping[int, int], gates: Mapping[int, Gate]):
        self._store, self._gates = store, gates
        self._keys = {
            layer: [ExpertKey(layer, expert) for expert in range(count)] for layer, count in experts_per_layer.items()
        }
        self._next = dict(pairwise(experts_per_layer))
        self._wanted: Sequence[ExpertKey] = []

    def observe(self, layer: int, top_k_index: IntArray, gate_input: Any, keys_of: KeysOf | None = None) -> None:
        """Choose what to ask for while a layer runs, whose own reads are under way.

        Args:
            top_k_index: ``(tokens, k)``; an index beyond the last expert means no expert.
            gate_input: the input of the layer's experts, as its gate takes it.
            keys_of: maps numbers to experts for these tokens; by default to those of the base model.
        """
        following = self._next.get(layer)
        find = self._base_keys if keys_of is None else keys_of
        self._wanted = [] if following is None else self._choose(layer, following, top_k_index, gate_input, find)
        self.request()

    def request(self) -> None:
        """Ask for experts of the next layer, as far as their source has time for them."""
        if self._wanted:
            self._store.prefetch(self._wanted)

    def _base_keys(self, layer: int, numbers: IntArray) -> list[ExpertKey]:
        """Return the experts of the base model; see ``KeysOf``."""
        keys = self._keys[layer]
        return [keys[number] for number in dict.fromkeys(numbers.T.ravel().tolist()) if number < len(keys)]

    def _choose(
        self, layer: int, following: int, top_k_index: IntArray, gate_input: Any, find: KeysOf
    ) -> Sequence[ExpertKey]:
        """Return the experts of the layer that follows which are to be asked for."""
        gate = self._gates.get(layer)
        if gate is not None:
            return find(following, gate(gate_input))
        return self._keys[following] if self._uses_most(layer, top_k_index, find) else []

    def _uses_most(self, layer: int, top_k_index: IntArray, find: KeysOf) -> bool:
        return len(find(layer, top_k_index)) >= MOST * len(self._keys[layer])


class TwoLayers(PrefetchTarget, Protocol):
    """The part of a store that a ``DevicePromptStream`` needs."""

    def holds_at_once(self, layers: Sequence[int]) -> bool:
        """Return True if the fastest tier has a slot for every expert of some layers at the same time."""


class DevicePromptStream(PromptStream):
    """Copies the next layer's experts to a device while a layer is computed there.

    A piece that uses most of a layer is taken to use all of the next one, gate or not: a gate would cost launches and a
    wait, and leave out little. Nothing is asked for while the device has too few slots for both layers, as what comes
    would evict what the layer is about to use, or be evicted by it.

    Args:
        store, experts_per_layer, gates: see ``PromptStream``.
    """

    def __init__(self, store: TwoLayers, experts_per_layer: Mapping[int, int], gates: Mapping[int, Gate]):
        super().__init__(store, experts_per_layer, gates)
        self._tier = store

    def _choose(
        self, layer: int, following: int, top_k_index: IntArray, gate_input: Any, find: KeysOf
    ) -> Sequence[ExpertKey]:
        if not self._tier.holds_at_once((layer, following)):
            return []
        if self._uses_most(layer, top_k_index, find):
            return self._keys[following]
        return super()._choose(layer, following, top_k_index, gate_input, find)
