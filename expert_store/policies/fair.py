"""Fair shares: each layer has its part of the slots."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from expert_store.keys import ExpertKey
from expert_store.policies.base import Policy, PolicyFactory


class FairPolicy:
    """One policy per layer, each with a share of the slots in proportion to the layer's experts.

    A layer that has its share evicts its own experts. A layer below its share takes a slot from one above, which there
    may be as slots fill, are pinned or change in number. Every token passes the layers in order, so one LRU order over
    all of them would evict first what is needed next.

    Args:
        num_slots: number of slots of all layers together.
        experts_per_layer: the layers that share them, in the order in which a token passes them.
        make_inner: makes the policy of one layer; called with the layer's share.
    """

    def __init__(self, num_slots: int, experts_per_layer: Mapping[int, int], make_inner: PolicyFactory) -> None:
        self._experts, self._num_slots = dict(experts_per_layer), num_slots
        self._shares = slots_per_layer(num_slots, self._experts)
        self._inner: dict[int, Policy] = {layer: make_inner(share) for layer, share in self._shares.items()}
        self._residents = dict.fromkeys(self._experts, 0)
        self._over: dict[int, None] = {}  # layers above their share; the one that has been for longest comes first
        # A token returns to the preceding layer last.
        layers = list(self._experts)
        self._latest_first = {layer: layers[:place][::-1] + layers[place:][::-1] for place, layer in enumerate(layers)}

    @property
    def shares(self) -> Mapping[int, int]:
        """Slots by layer."""
        return self._shares

    def insert(self, key: ExpertKey) -> None:
        self._inner[key.layer].insert(key)
        self._residents[key.layer] += 1
        if self._residents[key.layer] > self._shares[key.layer]:
            self._over.setdefault(key.layer)

    def touch(self, key: ExpertKey) -> None:
        self._inner[key.layer].touch(key)

    def touch_all(self, keys: Sequence[ExpertKey]) -> None:
        if keys:
            self._inner[keys[0].layer].touch_all(keys)

    def remove(self, key: ExpertKey) -> None:
        self._inner[key.layer].remove(key)
        self._residents[key.layer] -= 1
        if self._residents[key.layer] <= self._shares[key.layer]:
            self._over.pop(key.layer, None)

    def victim(self, incoming: ExpertKey, is_evictable: Callable[[ExpertKey], bool]) -> ExpertKey | None:
        for layer in self._donors(incoming.layer):
            victim = self._inner[layer].victim(incoming, is_evictable)
            if victim is not None:
                return victim
        return None

    def resize(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._shares = slots_per_layer(num_slots, self._experts)
        for layer, share in self._shares.items():
            self._inner[layer].resize(share)
        self._over = {layer: None for layer, count in self._residents.items() if count > self._shares[layer]}

    def set_experts(self, experts_per_layer: Mapping[int, int]) -> None:
        """Change the number of experts of each layer, and with it the shares; the layers stay the same."""
        self._experts = dict(experts_per_layer)
        self.resize(self._num_slots)

    def _donors(self, layer: int) -> Iterator[int]:
        """Yield layers in the order in which they give up a slot; the next is needed only if one has no victim."""
        if self._residents[layer] >= self._shares[layer]:
            yield layer
        yield from self._over
        yield layer
        yield from self._latest_first[layer]


def slots_per_layer(num_slots: int, experts_per_layer: Mapping[int, int]) -> dict[int, int]:
    """Return the slots of each layer, in proportion to its experts.

    They add up to ``num_slots``, or to the number of experts if that is smaller. Slots left by rounding down go to the
    layers with the largest remainders.
    """
    total = sum(experts_per_layer.values())
    if not total:
        return dict.fromkeys(experts_per_layer, 0)
    num_slots = min(num_slots, total)
    shares = {layer: num_slots * count // total for layer, count in experts_per_layer.items()}
    by_remainder = sorted(experts_per_layer, key=lambda layer: -(num_slots * experts_per_layer[layer] % total))
    for layer in by_remainder[: num_slots - sum(shares.values())]:
        shares[layer] += 1
    return shares
