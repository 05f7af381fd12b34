"""Where the experts of a model are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from client.parsing import record

Residency = Literal["device", "host", "disk"]


@dataclass(frozen=True)
class Tier:
    """A tier of memory, where each slot holds one expert."""

    budget_bytes: int
    num_slots: int
    slot_bytes: int  # of all slots together
    num_resident: int
    resident_bytes: int
    num_pinned: int


@dataclass(frozen=True)
class Expert:
    """One expert; ``tokens`` were routed to it since the server started."""

    layer: int
    expert: int
    variant: str
    residency: Residency
    tokens: int
    bytes: int
    pinned: bool
    quarantined: str | None  # why it is refused, or None


@dataclass(frozen=True)
class ExpertLayer:
    """The experts of one layer, in order."""

    layer: int
    experts: tuple[Expert, ...]


@dataclass(frozen=True)
class ExpertMap:
    """Every expert of a model, and totals since the server started; ratios are None until something was routed."""

    model: str
    tiers: Mapping[str, Tier]  # "host", and "device" where there is such a tier
    num_experts: int
    total_bytes: int
    hit_ratio: float | None
    optimal_hit_ratio: float | None  # had replacement known the future
    stall_seconds: float
    loaded_bytes: int  # from disk
    evictions: int
    layers: tuple[ExpertLayer, ...]

    def hottest(self, count: int) -> list[Expert]:
        """The experts to which most tokens were routed."""
        experts = (expert for layer in self.layers for expert in layer.experts)
        return sorted(experts, key=lambda expert: -expert.tokens)[:count]


@dataclass(frozen=True)
class ExpertChange:
    """How many experts were named, and how many of them changed."""

    requested: int
    changed: int


def expert_of(body: Mapping[str, Any]) -> Expert:
    return record(Expert, body)


def expert_map_of(body: Mapping[str, Any]) -> ExpertMap:
    disk = body["tiers"]["disk"]
    layers = tuple(
        ExpertLayer(layer["layer"], tuple(expert_of(expert) for expert in layer["experts"])) for layer in body["layers"]
    )
    return record(
        ExpertMap,
        body,
        tiers=tiers_of(body["tiers"]),
        num_experts=disk["num_experts"],
        total_bytes=disk["total_bytes"],
        layers=layers,
    )


def tiers_of(tiers: Mapping[str, Any]) -> dict[str, Tier]:
    """The tiers of memory; the disk is none."""
    return {name: record(Tier, tier) for name, tier in tiers.items() if name != "disk" and tier is not None}


def change_of(body: Mapping[str, Any]) -> ExpertChange:
    return record(ExpertChange, body)
