"""Synthetic experts of a large model, whose residency and traffic a test sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from expert_store import ExpertKey
from expert_store.load_balance import LoadBalance
from server.administration.expert_snapshot import RESIDENCY, ExpertSample, snapshot, update
from server.engine.engine_statistics import FINISHED_REASONS
from server.engine.interface import (
    ChangedExperts,
    ExpertAdministration,
    ExpertChange,
    ExpertPlace,
    JsonObject,
    RequestRefusedError,
)

BYTES = 9 << 20  # per expert
NAMES = {number: name for name, number in RESIDENCY.items()}


class SyntheticExperts:
    """Implements ``ExpertAdministration`` over two arrays; each sample adds the ``traffic`` of an interval.

    Args:
        traffic: random tokens and residency changes for each sample; None for none.
        name: model name.
    """

    def __init__(
        self, num_layers: int, num_experts: int, traffic: np.random.Generator | None = None, name: str = "synthetic"
    ):
        self.shape, self.traffic, self.name = (num_layers, num_experts), traffic, name
        self.residency = np.zeros(self.shape, dtype=np.uint8)
        self.tokens = np.zeros(self.shape, dtype=np.int64)
        self.balance = LoadBalance(dict.fromkeys(range(num_layers), num_experts))
        self.pinned: set[ExpertPlace] = set()
        self.refusal: str | None = None
        self.obstacle = "in_use"  # why no expert is evicted
        self.totals: JsonObject = {}  # replace those of ``_totals``
        self.memory: JsonObject = {
            "budget_bytes": 64 << 30,
            "parts": {
                "trunk": 3 << 30,
                "experts": 48 << 30,
                "kv_cache": 4 << 30,
                "step": 1 << 30,
                "process": 512 << 20,
                "unaccounted": 0,
            },
            "num_shrinks": 0,
            "num_grows": 0,
            "reason": "",
        }

    def overview(self) -> JsonObject:
        return {"layers": []}

    def find(self, layer: int, expert: int) -> JsonObject | None:
        return {
            "layer": layer,
            "expert": expert,
            "variant": "base",
            "residency": NAMES[int(self.residency[layer, expert])],
            "tokens": int(self.tokens[layer, expert]),
            "bytes": BYTES,
            "pinned": (layer, expert) in self.pinned,
            "quarantined": None,
        }

    def change(self, action: ExpertChange, places: Sequence[ExpertPlace]) -> ChangedExperts:
        if self.refusal is not None:
            raise RequestRefusedError(self.refusal, "experts")
        if action == "evict":
            return ChangedExperts(0, {self.obstacle: list(places)})
        before = set(self.pinned)
        self.pinned = before | set(places) if action == "pin" else before - set(places)
        return ChangedExperts(len(self.pinned ^ before))

    def sample(self) -> ExpertSample:
        if self.traffic is not None:
            self.tokens = self.tokens + self.traffic.poisson(0.4, self.shape)
            moved = self.traffic.random(self.shape) < 0.02
            self.residency = np.where(moved, self.traffic.integers(0, 3, self.shape, dtype=np.uint8), self.residency)
        layers, experts = self.shape
        pinned = frozenset(ExpertKey(*place) for place in self.pinned)
        totals = self._totals()
        return ExpertSample(
            dict.fromkeys(range(layers), experts),
            self.residency.copy(),
            self.tokens.copy(),
            pinned,
            balance=self.balance.recent(self.tokens),
            totals=totals,
        )

    def snapshot(self, sample: Any) -> JsonObject:
        return {"model": self.name, **snapshot(sample)}

    def update(self, before: Any, sample: Any) -> JsonObject:
        return update(before, sample)

    def _totals(self) -> JsonObject:
        num_resident, num_experts = int((self.residency == RESIDENCY["host"]).sum()), self.residency.size
        host = {
            "budget_bytes": num_experts // 2 * BYTES,
            "num_slots": num_experts // 2,
            "slot_bytes": BYTES,
            "num_resident": num_resident,
            "resident_bytes": num_resident * BYTES,
            "num_pinned": len(self.pinned),
        }
        return {
            "tiers": {"host": host, "disk": {"num_experts": num_experts, "total_bytes": num_experts * BYTES}},
            "hit_ratio": 0.75,
            "optimal_hit_ratio": 0.875,
            "stall_seconds": 1.5,
            "loaded_bytes": int(self.tokens.sum()) * BYTES,
            "prompt_tokens": 0,
            "generation_tokens": int(self.tokens.sum()),
            "num_requests_running": 3,
            "num_requests_waiting": 2,
            "kv_cache_usage": 0.25,
            "memory": self.memory,
            "uptime_seconds": 7_500.0,
            "step_seconds": 10.0,
            "num_load_failures": 0,
            "num_quarantined": 0,
            "finished_requests": dict.fromkeys(FINISHED_REASONS, 0),
            "first_token": {"count": 0, "seconds": 0.0},
            "inter_token": {"count": 0, "seconds": 0.0},
        } | self.totals


if TYPE_CHECKING:
    _: ExpertAdministration = SyntheticExperts(1, 1)
