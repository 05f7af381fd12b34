"""Snapshots of all experts, and updates between them, for live views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from expert_store import ExpertKey, LayerBalance, TierName
from server.engine.interface import JsonObject

RESIDENCY: dict[TierName, int] = {"disk": 0, "host": 1, "device": 2}


@dataclass(frozen=True)
class ExpertSample:
    """State of all experts at one moment; arrays are ``(layers, experts)``, as wide as the widest layer."""

    num_experts: Mapping[int, int]  # by layer, in the order of the rows
    residency: npt.NDArray[np.uint8]  # a value of ``RESIDENCY``
    tokens: npt.NDArray[np.int64]  # tokens routed to each expert since the start
    pinned: frozenset[ExpertKey]
    balance: Sequence[LayerBalance]
    totals: Mapping[str, Any]


def snapshot(sample: ExpertSample) -> JsonObject:
    """Return a complete sample as JSON."""
    sizes = sample.num_experts.values()
    return {
        "layers": [{"layer": layer, "num_experts": count} for layer, count in sample.num_experts.items()],
        "residency": [row[:count].tolist() for row, count in zip(sample.residency, sizes, strict=True)],
        "tokens": [row[:count].tolist() for row, count in zip(sample.tokens, sizes, strict=True)],
        "pinned": _places(sample.pinned),
        "balance": _balance(sample),
        **sample.totals,
    }


def update(before: ExpertSample, sample: ExpertSample) -> JsonObject:
    """Return the new residency of experts that moved, and the new tokens of each expert, as JSON."""
    moved = sample.residency != before.residency
    more = sample.tokens - before.tokens
    return {
        "residency": _triples(sample, moved, sample.residency),
        "tokens": _triples(sample, more > 0, more),
        "pinned": None if sample.pinned == before.pinned else _places(sample.pinned),
        "balance": None if sample.balance is before.balance else _balance(sample),
        **sample.totals,
    }


def _balance(sample: ExpertSample) -> list[JsonObject]:
    return [
        asdict(each) | {"cv": round(each.cv, 3), "max_over_mean": round(each.max_over_mean, 3)}
        for each in sample.balance
    ]


def _triples(sample: ExpertSample, mask: npt.NDArray[np.bool_], values: npt.NDArray[Any]) -> list[list[int]]:
    """Return ``[layer, expert, value]`` for each True of the mask."""
    rows, experts = mask.nonzero()
    layers = np.array(list(sample.num_experts))[rows]
    return np.stack([layers, experts, values[rows, experts]], 1).tolist()  # type: ignore[no-any-return]


def _places(keys: frozenset[ExpertKey]) -> list[list[int]]:
    return sorted([key.layer, key.expert] for key in keys)
