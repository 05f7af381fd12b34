"""Replacement policies: which resident expert goes when another is needed."""

from __future__ import annotations

from collections.abc import Mapping

from .arc import ArcPolicy
from .base import Policy, PolicyFactory
from .fair import FairPolicy
from .lfru import LfruPolicy
from .lfu import LfuPolicy
from .lru import LruPolicy
from .slru import SlruPolicy

_POLICIES: dict[str, PolicyFactory] = {
    "lru": LruPolicy,
    "lfru": LfruPolicy,
    "slru": SlruPolicy,
    "lfu": LfuPolicy,
    "arc": ArcPolicy,
}
POLICIES: tuple[str, ...] = tuple(_POLICIES)


def make_policy(name: str, num_slots: int, experts_per_layer: Mapping[int, int]) -> Policy:
    """A policy by its name, within shares of the layers.

    Args:
        name: one of ``POLICIES``.
        num_slots: slots of all layers together.
        experts_per_layer: the layers that share them, in the order in which a token meets them.

    Raises:
        ValueError: there is no policy of that name.
    """
    if name not in _POLICIES:
        raise ValueError(f"{name!r} is not a cache policy; choose one of {', '.join(POLICIES)}")
    return FairPolicy(num_slots, experts_per_layer, _POLICIES[name])


__all__ = [
    "POLICIES",
    "ArcPolicy",
    "FairPolicy",
    "LfruPolicy",
    "LfuPolicy",
    "LruPolicy",
    "Policy",
    "PolicyFactory",
    "SlruPolicy",
    "make_policy",
]
