"""LayerStream: the experts of all layers in order, for a model that uses every one of them in each pass."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from expert_store.keys import ExpertKey
from expert_store.prefetching.prefetcher import PrefetchTarget


class LayerStream:
    """Reads the next layer's experts while those of a layer are computed, and those of the first behind the last.

    The order is known, so nothing is predicted and nothing is read in vain: the experts of the next layer that are
    resident stay, and those that have just been computed make room.

    Args:
        store: reads the experts.
        experts_per_layer: number of experts of each layer, in the order in which layers run.
    """

    observes = True

    def __init__(self, store: PrefetchTarget, experts_per_layer: Mapping[int, int]):
        self._store = store
        layers = list(experts_per_layer)
        self._next = {
            layer: [ExpertKey(after, expert) for expert in range(experts_per_layer[after])]
            for layer, after in pairwise([*layers, layers[0]])
        }
        self._wanted: list[ExpertKey] = []

    def observe(self, layer: int, top_k_index: Any, gate_input: Any, keys_of: Any = None) -> None:
        """Note the layer that runs, whose own reads are under way."""
        del top_k_index, gate_input, keys_of
        self._wanted = self._next[layer]
        self.request()

    def request(self) -> None:
        """Ask for experts of the next layer, as far as the disk has time for them."""
        self._store.prefetch(self._wanted)
