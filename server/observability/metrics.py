"""Prometheus metrics, read from the counters of store and engine when they are scraped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from expert_store import (
    LOAD_SECONDS_BUCKETS,
    PHASES,
    PREDICTORS,
    PREFETCH_OUTCOMES,
    ExpertStore,
    HitRatios,
    LoadStatistics,
    Prefetcher,
    PrefetchStatistics,
    StoreStatistics,
    TierReport,
)

from .statistics import STEP_PHASES, EngineStatistics

WAYS = (("disk", "host"), ("host", "device"), ("device", "host"))
Samples = Iterable[tuple[tuple[str, ...], float]]  # label values and the number


class Metrics:
    """The metrics of one server."""

    def __init__(self, store: ExpertStore, engine: EngineStatistics, prefetcher: Prefetcher | None = None):
        self._registry = CollectorRegistry()
        self._registry.register(_ServerCollector(store, engine, prefetcher))

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _ServerCollector(Collector):
    def __init__(self, store: ExpertStore, engine: EngineStatistics, prefetcher: Prefetcher | None):
        self._store, self._engine, self._prefetcher = store, engine, prefetcher

    def collect(self) -> Iterator[Metric]:
        statistics, tiers = self._store.statistics(), list(self._store.tiers().values())
        yield from _lookups(statistics, [*(tier.name for tier in tiers), "disk"])
        yield from _loads(statistics, len(tiers) > 1)
        yield from _residency(tiers, len(self._store.quarantined))
        yield from _hit_ratios(self._store.hit_ratios())
        if self._prefetcher is not None:
            yield from _prefetching(self._prefetcher.statistics())
        yield from _tokens(statistics, list(self._store.catalog.layers))
        yield from _engine(self._engine)


def _lookups(statistics: StoreStatistics, tiers: Sequence[str]) -> Iterator[Metric]:
    lookups = [((tier, phase), statistics.lookups[tier, phase]) for tier in tiers for phase in PHASES]
    yield _counter(
        "expert_lookups", "Experts asked for, by the tier where they were found.", ["tier", "phase"], lookups
    )
    stalls = [((phase,), statistics.stall_seconds[phase]) for phase in PHASES]
    yield _counter("expert_stall_seconds", "Seconds that compute waited for experts.", ["phase"], stalls)
    prefetches = [((outcome,), statistics.prefetches[outcome]) for outcome in PREFETCH_OUTCOMES]
    yield _counter("expert_prefetches", "Experts read ahead, by what became of them.", ["outcome"], prefetches)


def _loads(statistics: StoreStatistics, has_device: bool) -> Iterator[Metric]:
    evictions = [((tier,), count) for tier, count in statistics.evictions.items()]
    failures = [(("host",), statistics.load_failures)]
    yield _counter("expert_evictions", "Experts that gave up their slot.", ["tier"], evictions)
    yield _counter("expert_load_failures", "Experts that could not be read.", ["tier"], failures)
    loads = [(way, statistics.loads.get(way, LoadStatistics())) for way in WAYS if has_device or "device" not in way]
    loaded = [(way, load.nbytes) for way, load in loads]
    yield _counter("expert_loaded_bytes", "Bytes of experts moved into a tier.", ["source", "target"], loaded)
    seconds = HistogramMetricFamily(
        "greenroom_expert_load_seconds", "Seconds that one expert took.", labels=["source", "target"]
    )
    bounds = [*map(str, LOAD_SECONDS_BUCKETS), "+Inf"]
    for way, load in loads:
        counts = [sum(load.buckets[: end + 1]) for end in range(len(bounds))]
        seconds.add_metric(list(way), list(zip(bounds, counts, strict=True)), load.seconds)
    yield seconds


def _residency(tiers: Sequence[TierReport], num_quarantined: int) -> Iterator[Metric]:
    def by_tier(name: str, text: str, value: Callable[[TierReport], int]) -> Metric:
        return _gauge(name, text, ["tier"], [((tier.name,), value(tier)) for tier in tiers])

    yield by_tier("expert_slots", "Slots of a tier.", lambda tier: tier.num_slots)
    yield by_tier("expert_resident", "Experts in a tier.", lambda tier: tier.num_resident)
    yield by_tier("expert_pinned", "Experts that are kept in a tier.", lambda tier: tier.num_pinned)
    yield by_tier("expert_resident_bytes", "Bytes of the experts in a tier.", lambda tier: tier.resident_bytes)
    yield by_tier("expert_budget_bytes", "Bytes that a tier may take.", lambda tier: tier.budget_bytes)
    yield _gauge(
        "expert_quarantined", "Experts that are refused because their bytes are damaged.", [], [((), num_quarantined)]
    )


def _hit_ratios(ratios: HitRatios | None) -> Iterator[Metric]:
    realised = [] if ratios is None else [((), ratios.realised)]
    optimal = [] if ratios is None else [((), ratios.optimal)]
    yield _gauge("expert_hit_ratio", "Part of recent look-ups that was in memory.", [], realised)
    yield _gauge("expert_optimal_hit_ratio", "The same, had replacement on demand known the future.", [], optimal)


def _prefetching(prefetching: PrefetchStatistics) -> Iterator[Metric]:
    predicted = [((predictor,), prefetching.predicted[predictor]) for predictor in PREDICTORS]
    correct = [((predictor,), prefetching.correct[predictor]) for predictor in PREDICTORS]
    yield _gauge("expert_prefetch_active", "1 while prefetching pays.", [], [((), prefetching.is_active)])
    yield _counter("expert_predictions", "Experts predicted for the next layer.", ["predictor"], predicted)
    yield _counter("expert_correct_predictions", "Of these, the ones it chose.", ["predictor"], correct)


def _tokens(statistics: StoreStatistics, layers: Sequence[int]) -> Iterator[Metric]:
    tokens = [
        ((str(layer), str(expert)), int(count))
        for layer, row in zip(layers, statistics.tokens, strict=True)
        for expert, count in enumerate(row)
    ]
    yield _counter("expert_tokens", "Tokens routed to an expert.", ["layer", "expert"], tokens)


def _engine(engine: EngineStatistics) -> Iterator[Metric]:
    yield _gauge("num_requests_running", "Requests in the batch.", [], [((), engine.num_running)])
    yield _gauge("num_requests_waiting", "Requests in the queue.", [], [((), engine.num_waiting)])
    yield _gauge("num_requests_held", "Requests in the batch that wait for their turn.", [], [((), engine.num_held)])
    yield _counter("expert_turns", "Groups of requests that went on while others waited.", [], [((), engine.num_turns)])
    yield _gauge("expert_stall_share", "Part of recent decode time spent waiting.", [], [((), engine.stall_share)])
    yield _gauge("kv_cache_usage_perc", "Part of the KV cache in use, 0 to 1.", [], [((), engine.kv_cache_usage)])
    yield _counter("prompt_tokens", "Prompt tokens computed.", [], [((), engine.prompt_tokens)])
    yield _counter("generation_tokens", "Tokens generated.", [], [((), engine.generation_tokens)])
    queries, hits = engine.prefix_cache_queries, engine.prefix_cache_hits
    yield _counter("prefix_cache_queries", "Prompt tokens looked for in the KV cache.", [], [((), queries)])
    yield _counter("prefix_cache_hits", "Of these, the ones that were there.", [], [((), hits)])
    yield _counter("num_preemptions", "Requests sent back to the queue.", [], [((), engine.preemptions)])
    steps = [((phase,), engine.steps[phase]) for phase in STEP_PHASES]
    yield _counter("engine_steps", "Steps of the engine.", ["phase"], steps)
    seconds = [((phase,), engine.step_seconds[phase]) for phase in STEP_PHASES]
    yield _counter("engine_step_seconds", "Seconds that they took, from scheduling to publishing.", ["phase"], seconds)
    finished = [((reason,), engine.finished[reason]) for reason in ("stop", "length", "abort", "error", "deadline")]
    yield _counter("request_success", "Requests that ended, by reason.", ["finished_reason"], finished)


def _counter(name: str, text: str, labels: Sequence[str], values: Samples) -> Metric:
    family = CounterMetricFamily(f"greenroom_{name}", text, labels=labels)
    for key, value in values:
        family.add_metric(key, value)
    return family


def _gauge(name: str, text: str, labels: Sequence[str], values: Samples) -> Metric:
    family = GaugeMetricFamily(f"greenroom_{name}", text, labels=labels)
    for key, value in values:
        family.add_metric(key, value)
    return family
