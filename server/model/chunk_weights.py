"""ChunkWeights: the weights that one sequence of a step runs with beside the base model's. Does not load torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.model.experts.variant import ExpertVariant

if TYPE_CHECKING:
    from server.model.lora.adapter import LoraAdapter


@dataclass(frozen=True)
class WeightedAdapter:
    """An adapter and the factor of what it adds."""

    adapter: LoraAdapter
    weight: float = 1.0


@dataclass(frozen=True)
class ChunkWeights:
    """The expert variant and the adapters of one sequence; equal ones compute alike."""

    variant: ExpertVariant | None = None
    adapters: tuple[WeightedAdapter, ...] = ()
