"""Prometheus metrics, read from the counters of store and engine when they are scraped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from expert_store import LOAD_SECONDS_BUCKETS, PHASES, ExpertStore, StoreStatistics

from .statistics import EngineStatistics

TIERS = ("host", "disk")
Samples = Iterable[tuple[tuple[str, ...], float]]  # label values and the number


class Metrics:
    """The metrics of one server."""

    def __init__(self, store: ExpertStore, engine: EngineStatistics):
        self._registry = CollectorRegistry()
        self._registry.register(_ServerCollector(store, engine))

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _ServerCollector(Collector):
    def __init__(self, store: ExpertStore, engine: EngineStatistics):
        self._store, self._engine = store, engine

    def collect(self) -> Iterator[Metric]:
        statistics = self._store.statistics()
        yield from _lookups(statistics)
        yield from _loads(statistics)
        yield from _residency(self._store)
        yield from _tokens(statistics, list(self._store.catalog.layers))
        yield from _engine(self._engine)


def _lookups(statistics: StoreStatistics) -> Iterator[Metric]:
    lookups = [((tier, phase), statistics.lookups.get((tier, phase), 0)) for tier in TIERS for phase in PHASES]
    yield _counter(
        "expert_lookups", "Experts asked for, by the tier where they were found.", ["tier", "phase"], lookups
    )
    stalls = [((phase,), statistics.stall_seconds[phase]) for phase in PHASES]
    yield _counter("expert_stall_seconds", "Seconds that compute waited for experts.", ["phase"], stalls)


def _loads(statistics: StoreStatistics) -> Iterator[Metric]:
    way = ["source", "target"]
    host = [(("host",), statistics.evictions)]
    failures = [(("host",), statistics.load_failures)]
    loaded = [(("disk", "host"), statistics.loaded_bytes)]
    yield _counter("expert_evictions", "Experts that gave up their slot.", ["tier"], host)
    yield _counter("expert_load_failures", "Experts that could not be read.", ["tier"], failures)
    yield _counter("expert_loaded_bytes", "Bytes of experts moved into a tier.", way, loaded)
    seconds = HistogramMetricFamily("greenroom_expert_load_seconds", "Seconds that one expert took.", labels=way)
    bounds = [*map(str, LOAD_SECONDS_BUCKETS), "+Inf"]
    counts = [sum(statistics.load_buckets[: end + 1]) for end in range(len(bounds))]
    seconds.add_metric(["disk", "host"], list(zip(bounds, counts, strict=True)), statistics.load_seconds)
    yield seconds


def _residency(store: ExpertStore) -> Iterator[Metric]:
    residents = store.residents()
    resident_bytes = sum(store.catalog.layout(key.layer).slot_bytes for key in residents)
    yield _gauge("expert_slots", "Slots of a tier.", ["tier"], [(("host",), store.num_slots)])
    yield _gauge("expert_resident", "Experts in a tier.", ["tier"], [(("host",), len(residents))])
    yield _gauge("expert_resident_bytes", "Bytes of the experts in a tier.", ["tier"], [(("host",), resident_bytes)])
    yield _gauge("expert_budget_bytes", "Bytes that a tier may take.", ["tier"], [(("host",), store.host_bytes)])


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
    yield _gauge("kv_cache_usage_perc", "Part of the KV cache in use, 0 to 1.", [], [((), engine.kv_cache_usage)])
    yield _counter("prompt_tokens", "Prompt tokens computed.", [], [((), engine.prompt_tokens)])
    yield _counter("generation_tokens", "Tokens generated.", [], [((), engine.generation_tokens)])
    yield _counter("num_preemptions", "Requests sent back to the queue.", [], [((), engine.preemptions)])
    finished = [((reason,), engine.finished[reason]) for reason in ("stop", "length", "abort", "error")]
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
