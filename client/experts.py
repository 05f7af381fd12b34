"""Residency and traffic of a model's experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from client.parsing import dataclass_from

Residency = Literal["device", "host", "disk"]


@dataclass(frozen=True)
class Tier:
    """A memory tier; each slot holds one expert."""

    budget_bytes: int
    num_slots: int
    slot_bytes: int  # total of all slots
    num_resident: int
    resident_bytes: int
    num_pinned: int


@dataclass(frozen=True)
class Expert:
    """One expert; ``tokens`` is the number of tokens routed to it since the server started."""

    layer: int
    expert: int
    variant: str
    residency: Residency
    tokens: int
    bytes: int
    pinned: bool
    quarantined: str | None  # reason, or None if the expert is usable


@dataclass(frozen=True)
class ExpertLayer:
    """The experts of one layer, in index order."""

    layer: int
    experts: tuple[Expert, ...]


@dataclass(frozen=True)
class ExpertMap:
    """All experts of a model, and totals since the server started. Ratios are None before the first token."""

    model: str
    tiers: Mapping[str, Tier]  # keys are "host", and "device" if that tier exists
    num_experts: int
    total_bytes: int
    hit_ratio: float | None
    optimal_hit_ratio: float | None  # hit ratio of Belady's algorithm
    stall_seconds: float
    loaded_bytes: int  # read from disk
    evictions: int
    layers: tuple[ExpertLayer, ...]

    def hottest(self, count: int) -> list[Expert]:
        """Return the ``count`` experts with the most tokens."""
        experts = (expert for layer in self.layers for expert in layer.experts)
        return sorted(experts, key=lambda expert: -expert.tokens)[:count]


@dataclass(frozen=True)
class ExpertChange:
    """Number of experts in a request, and number of experts that it changed."""

    requested: int
    changed: int


def parse_expert(body: Mapping[str, Any]) -> Expert:
    return dataclass_from(Expert, body)


def parse_expert_map(body: Mapping[str, Any]) -> ExpertMap:
    disk = body["tiers"]["disk"]
    layers = tuple(
        ExpertLayer(layer["layer"], tuple(parse_expert(expert) for expert in layer["experts"]))
        for layer in body["layers"]
    )
    return dataclass_from(
        ExpertMap,
        body,
        tiers=parse_tiers(body["tiers"]),
        num_experts=disk["num_experts"],
        total_bytes=disk["total_bytes"],
        layers=layers,
    )


def parse_tiers(tiers: Mapping[str, Any]) -> dict[str, Tier]:
    """Parse the memory tiers; the disk is not one of them."""
    return {name: dataclass_from(Tier, tier) for name, tier in tiers.items() if name != "disk" and tier is not None}


def parse_change(body: Mapping[str, Any]) -> ExpertChange:
    return dataclass_from(ExpertChange, body)
