"""Streaming: layers that are read in order, pass after pass, each of them whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from expert_store.policies.fair import FairPolicy
from expert_store.policies.lru import LruPolicy


class StreamPolicy(FairPolicy):
    """Evicts what is needed last, if every pass uses every expert in the order of the layers.

    While a layer is read, its experts that may be evicted have been used in this pass, since a lease holds the others.
    They are needed a whole pass later; those of the layer before a little earlier than that, and so on back to those of
    the next layer, which are needed first. So there are no shares: layers that are resident stay so from pass to pass,
    and the others come and go.

    Args:
        num_slots: number of slots of all layers together.
        experts_per_layer: the layers, in the order of a pass.
    """

    def __init__(self, num_slots: int, experts_per_layer: Mapping[int, int]) -> None:
        super().__init__(num_slots, experts_per_layer, LruPolicy)

    def _donors(self, layer: int) -> Iterator[int]:
        yield layer
        yield from self._latest_first[layer]
