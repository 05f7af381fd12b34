"""A share of the slots for each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from expert_store.keys import ExpertKey

from .base import Policy, PolicyFactory


class FairPolicy:
    """One policy a layer, each with a share of the slots in proportion to the layer's experts.

    A layer that has its share makes room for itself. One below it takes from a layer that has more than its share,
    which happens as slots fill, are pinned or change in number. Every token walks the layers in order, so one order of
    recency over all of them would give up first what is needed next.

    Args:
        num_slots: slots of all layers together.
        experts_per_layer: the layers that share them, in the order in which a token meets them.
        make_inner: makes the policy of one layer, from its share.
    """

    def __init__(self, num_slots: int, experts_per_layer: Mapping[int, int], make_inner: PolicyFactory) -> None:
        self._experts = dict(experts_per_layer)
        self._shares = share_out(num_slots, self._experts)
        self._inner: dict[int, Policy] = {layer: make_inner(share) for layer, share in self._shares.items()}
        self._residents = dict.fromkeys(self._experts, 0)
        self._over: dict[int, None] = {}  # layers above their share, the longest first
        # The layer before is the one that a token comes to again last.
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
        for layer in self._givers(incoming.layer):
            victim = self._inner[layer].victim(incoming, is_evictable)
            if victim is not None:
                return victim
        return None

    def resize(self, num_slots: int) -> None:
        self._shares = share_out(num_slots, self._experts)
        for layer, share in self._shares.items():
            self._inner[layer].resize(share)
        self._over = {layer: None for layer, count in self._residents.items() if count > self._shares[layer]}

    def _givers(self, layer: int) -> Iterator[int]:
        """Layers in the order in which they are asked for a slot; only if all is leased is the second one needed."""
        if self._residents[layer] >= self._shares[layer]:
            yield layer
        yield from self._over
        yield layer
        yield from self._latest_first[layer]


def share_out(num_slots: int, experts_per_layer: Mapping[int, int]) -> dict[int, int]:
    """Slots of each layer in proportion to its experts, in whole numbers.

    They add up to ``num_slots``, or to all experts if these are fewer; what rounding down leaves goes to the largest
    remainders.
    """
    total = sum(experts_per_layer.values())
    num_slots = min(num_slots, total)
    shares = {layer: num_slots * count // total for layer, count in experts_per_layer.items()}
    by_remainder = sorted(experts_per_layer, key=lambda layer: -(num_slots * experts_per_layer[layer] % total))
    for layer in by_remainder[: num_slots - sum(shares.values())]:
        shares[layer] += 1
    return shares
