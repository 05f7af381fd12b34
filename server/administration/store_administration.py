"""Administration of the experts of a store."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from expert_store import (
    BASE,
    BudgetError,
    ExpertKey,
    ExpertLoadError,
    ExpertStore,
    StoreClosedError,
    StoreStatistics,
)
from expert_store.disk_cache.fill import Fill
from server.administration.cached_value import CachedValue
from server.administration.expert_snapshot import RESIDENCY, ExpertSample, snapshot, update
from server.engine.engine_statistics import FINISHED_REASONS, EngineStatistics
from server.engine.histogram import Histogram
from server.engine.interface import (
    ChangedExperts,
    EngineUnavailableError,
    ExpertChange,
    ExpertPlace,
    JsonObject,
    RequestRefusedError,
)
from server.memory.usage import MemoryUsage

MAX_PREFETCH_SECONDS = 5.0  # longest wait of a prefetch for an idle disk


class StoreAdministration:
    """An ``ExpertAdministration`` over a store. Thread-safe.

    Args:
        model: name of the model.
        engine: counters of the engine, which live views include.
        memory: memory of the server, which live views include.
        fill: what downloads the rest of the model, if anything does.
    """

    def __init__(
        self, model: str, store: ExpertStore, engine: EngineStatistics, memory: MemoryUsage, fill: Fill | None = None
    ):
        self._fill = fill
        self._model, self._store, self._engine = model, store, engine
        self._started_at = time.monotonic()
        self._num_experts = {layer: len(entry.experts) for layer, entry in store.catalog.layers.items()}
        self._row = {layer: row for row, layer in enumerate(self._num_experts)}
        self._ratios, self._memory = CachedValue(store.hit_ratios), CachedValue(lambda: describe_memory(memory))

    def overview(self) -> JsonObject:
        statistics = self._store.statistics()
        experts = self._experts(statistics)
        return {
            "object": "experts",
            "model": self._model,
            **self._totals(statistics),
            "evictions": sum(statistics.evictions.values()),
            "layers": [
                {"layer": layer, "experts": [experts.describe(layer, expert) for expert in range(num_experts)]}
                for layer, num_experts in self._num_experts.items()
            ],
        }

    def find(self, layer: int, expert: int) -> JsonObject | None:
        if not 0 <= expert < self._num_experts.get(layer, 0):
            return None
        return self._experts(self._store.statistics()).describe(layer, expert)

    def change(self, action: ExpertChange, places: Sequence[ExpertPlace]) -> ChangedExperts:
        keys = [self._key(layer, expert) for layer, expert in dict.fromkeys(places)]
        try:
            match action:
                case "pin":
                    return ChangedExperts(self._store.pin(keys))
                case "unpin":
                    return ChangedExperts(self._store.unpin(keys))
                case "prefetch":
                    return ChangedExperts(self._store.preload(keys, MAX_PREFETCH_SECONDS))
                case "evict":
                    return self._evict(keys)
        except (BudgetError, ExpertLoadError) as error:
            raise RequestRefusedError(str(error), "experts") from error
        except StoreClosedError as error:
            raise EngineUnavailableError("the server is stopping") from error

    @property
    def shape(self) -> tuple[int, int]:
        """Layers, and experts of the widest one."""
        return len(self._num_experts), max(self._num_experts.values(), default=0)

    def residency(self) -> npt.NDArray[np.uint8]:
        """Return the tier of each of the model's own experts, a value of ``RESIDENCY``, as ``(layers, experts)``."""
        residency = np.zeros(self.shape, dtype=np.uint8)
        for key, tier in self._store.residents().items():
            if key.variant == BASE:
                residency[self._row[key.layer], key.expert] = RESIDENCY[tier]
        return residency

    def hottest(self) -> list[ExpertPlace]:
        """Return the resident experts, those with the most tokens first."""
        residency, tokens = self.residency(), self._store.statistics().tokens
        layers = list(self._num_experts)
        rows, experts = residency.nonzero()
        order = np.argsort(-tokens[rows, experts], kind="stable")
        return [(layers[row], int(expert)) for row, expert in zip(rows[order], experts[order], strict=True)]

    def sample(self) -> ExpertSample:
        statistics = self._store.statistics()
        return ExpertSample(
            self._num_experts,
            self.residency(),
            statistics.tokens,
            pinned=self._store.pinned,
            balance=self._store.load_balance(statistics),
            totals=self._live_totals(statistics),
        )

    def totals(self) -> JsonObject:
        """Return the totals of a sample, and of latencies the cumulative counts of all buckets."""
        totals, latencies = self._live_totals(self._store.statistics()), self._engine.latencies
        for name, histogram in (("first_token", latencies.first_token), ("inter_token", latencies.inter_token)):
            totals[name] = {**totals[name], "cumulative": histogram.cumulative()}
        return totals

    def _live_totals(self, statistics: StoreStatistics) -> JsonObject:
        """Return the totals in every event of the stream."""
        engine = self._engine
        return {
            **self._totals(statistics),
            "prompt_tokens": engine.prompt_tokens,
            "generation_tokens": engine.generation_tokens,
            "num_requests_running": engine.num_running,
            "num_requests_waiting": engine.num_waiting,
            "kv_cache_usage": engine.kv_cache_usage,
            "memory": self._memory(),
            "uptime_seconds": time.monotonic() - self._started_at,
            "step_seconds": sum(engine.step_seconds.values()),
            "num_load_failures": statistics.load_failures,
            "num_quarantined": len(self._store.quarantined),
            "finished_requests": {reason: engine.finished[reason] for reason in FINISHED_REASONS},
            "first_token": _describe_latency(engine.latencies.first_token),
            "inter_token": _describe_latency(engine.latencies.inter_token),
        }

    def snapshot(self, sample: ExpertSample) -> JsonObject:
        return {"model": self._model, **snapshot(sample)}

    def update(self, before: ExpertSample, sample: ExpertSample) -> JsonObject:
        return update(before, sample)

    def _evict(self, keys: Sequence[ExpertKey]) -> ChangedExperts:
        unchanged: dict[str, list[ExpertPlace]] = {}
        obstacles = self._store.try_evict(keys)
        for key, obstacle in obstacles.items():
            if obstacle is not None:
                unchanged.setdefault(obstacle, []).append((key.layer, key.expert))
        return ChangedExperts(sum(obstacle is None for obstacle in obstacles.values()), unchanged)

    def _key(self, layer: int, expert: int) -> ExpertKey:
        num_experts = self._num_experts.get(layer)
        if num_experts is None:
            layers = f"{min(self._num_experts)} to {max(self._num_experts)}"
            raise RequestRefusedError(
                f"layer {layer} has no routed experts; layers with routed experts are {layers}", "experts"
            )
        if not 0 <= expert < num_experts:
            raise RequestRefusedError(
                f"layer {layer} has no expert {expert}; it has experts 0 to {num_experts - 1}", "experts"
            )
        return ExpertKey(layer, expert)

    def _totals(self, statistics: StoreStatistics) -> JsonObject:
        """Return the totals in the overview and in every event of the stream."""
        catalog, ratios = self._store.catalog, self._ratios()
        tiers: dict[str, Any] = {name: asdict(tier) for name, tier in self._store.tiers().items()}
        for tier in tiers.values():
            del tier["name"]
        tiers["disk"] = {"num_experts": sum(self._num_experts.values()), "total_bytes": catalog.total_bytes}
        return {
            "tiers": tiers,
            "hit_ratio": None if ratios is None else ratios.realised,
            "optimal_hit_ratio": None if ratios is None else ratios.optimal,
            "stall_seconds": sum(statistics.stall_seconds.values()),
            "loaded_bytes": statistics.loaded_bytes,
            "download": None if self._fill is None else self._fill.progress()._asdict(),
        }

    def _experts(self, statistics: StoreStatistics) -> _Experts:
        return _Experts(self._store, self._row, statistics)


def describe_memory(memory: MemoryUsage) -> JsonObject:
    """Return the memory budget, its parts, and the number of adjustments, as JSON."""
    adjustments = memory.adjustments
    return {
        "budget_bytes": memory.budget_bytes,
        "parts": memory.by_part(),
        "num_shrinks": adjustments.num_shrinks,
        "num_grows": adjustments.num_grows,
        "reason": adjustments.reason,
    }


def _describe_latency(histogram: Histogram) -> JsonObject:
    """Return the number of observations and their sum, from which clients compute the mean of an interval."""
    return {"count": histogram.cumulative()[-1], "seconds": histogram.sum}


class _Experts:
    """State of the experts at one moment."""

    def __init__(self, store: ExpertStore, row: dict[int, int], statistics: StoreStatistics):
        self._catalog, self._row = store.catalog, row
        self._tokens = statistics.tokens.tolist()
        self._residents, self._pinned, self._quarantined = store.residents(), store.pinned, store.quarantined
        self._variants: dict[ExpertPlace, dict[str, str]] = {}  # residency by version of a variant
        for variant, recipes in self._catalog.variants.items():
            for place in recipes:
                residency = self._residents.get(ExpertKey(*place, variant), "disk")
                self._variants.setdefault(place, {})[variant] = residency

    def describe(self, layer: int, expert: int) -> JsonObject:
        key = ExpertKey(layer, expert)
        return {
            "layer": layer,
            "expert": expert,
            "variant": key.variant,
            "residency": self._residents.get(key, "disk"),
            "tokens": self._tokens[self._row[layer]][expert],
            "bytes": self._catalog.layout(layer).slot_bytes,
            "pinned": key in self._pinned,
            "quarantined": self._quarantined.get(key),
            "variants": self._variants.get((layer, expert), {}),
        }
