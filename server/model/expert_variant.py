"""Expert variants as the model computes with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from expert_store import ExpertKey

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class VariantLayer:
    """One layer of experts of a variant.

    Args:
        keys: the expert behind each row of the variant's router, in the order of the rows.
        router: the variant's router weights by name of the router's parameter; empty if they are the base's.
    """

    keys: tuple[ExpertKey, ...]
    router: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ExpertVariant:
    """A set of expert weights for some places of the base model.

    Args:
        name: under which it is served.
        version: the variant in an ``ExpertKey``, which no other version under this name has.
        layers: the layers that differ from the base model's, by number.
    """

    name: str
    version: str
    layers: Mapping[int, VariantLayer]

    def removes_experts(self, layer: int) -> bool:
        """Return True if a layer lacks experts of the base model, so that rows of its router have other numbers."""
        own = self.layers.get(layer)
        return own is not None and any(key.expert != row for row, key in enumerate(own.keys))
