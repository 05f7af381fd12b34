"""Replacement policies: each chooses the resident expert to evict when another one needs a slot."""

from __future__ import annotations

from collections.abc import Mapping

from expert_store.policies.arc import ArcPolicy
from expert_store.policies.base import Policy, PolicyFactory
from expert_store.policies.fair import FairPolicy
from expert_store.policies.lfru import LfruPolicy
from expert_store.policies.lfu import LfuPolicy
from expert_store.policies.lru import LruPolicy
from expert_store.policies.slru import SlruPolicy
from expert_store.policies.stream import StreamPolicy

_POLICIES: dict[str, PolicyFactory] = {
    "lru": LruPolicy,
    "lfru": LfruPolicy,
    "slru": SlruPolicy,
    "lfu": LfuPolicy,
    "arc": ArcPolicy,
}
POLICIES: tuple[str, ...] = tuple(_POLICIES)
STREAM = "stream"  # of a model whose every pass uses every expert, which nobody has to choose


def make_policy(name: str, num_slots: int, experts_per_layer: Mapping[int, int]) -> FairPolicy:
    """Make a policy by its name, one instance for each layer within the layer's share of slots.

    Args:
        name: one of ``POLICIES``, or ``STREAM``.
        num_slots: number of slots of all layers together.
        experts_per_layer: the layers that share them, in the order in which a token passes them.

    Raises:
        ValueError: no policy has that name.
    """
    if name == STREAM:
        return StreamPolicy(num_slots, experts_per_layer)
    if name not in _POLICIES:
        raise ValueError(f"{name!r} is not a cache policy; choose one of {', '.join(POLICIES)}")
    return FairPolicy(num_slots, experts_per_layer, _POLICIES[name])


__all__ = [
    "POLICIES",
    "STREAM",
    "ArcPolicy",
    "FairPolicy",
    "LfruPolicy",
    "LfuPolicy",
    "LruPolicy",
    "Policy",
    "PolicyFactory",
    "SlruPolicy",
    "StreamPolicy",
    "make_policy",
]
