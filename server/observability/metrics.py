"""Prometheus metrics, read from the counters of store and engine when they are scraped."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import accumulate
from typing import get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from expert_store import (
    LOAD_SECONDS_BUCKETS,
    PHASES,
    PREDICTORS,
    PREFETCH_OUTCOMES,
    ExpertStore,
    HitRatios,
    LayerBalance,
    LoadStatistics,
    Prefetcher,
    PrefetchStatistics,
    StoreHealth,
    StoreStatistics,
    TierReport,
)
from expert_store.disk_cache.disk_cache import FAILURES, DiskCache
from expert_store.disk_cache.fill import Fill, FillProgress
from expert_store.disk_cache.places import caches, lowest_tiers
from expert_store.statistics import Phase
from server.engine.engine_statistics import FINISHED_REASONS, STEP_PHASES, EngineStatistics, Latencies
from server.memory.usage import ADJUSTMENTS, MemoryUsage
from server.observability.expert_tokens import Detail, ExpertTokens
from server.observability.logging import num_dropped_lines
from server.observability.metric_families import NAME_LABELS, Samples, counter, gauge, hashed, histogram
from server.observability.weight_metrics import adapter_metrics, variant_metrics
from server.weights.adapter_registry import AdapterRegistry
from server.weights.variant_registry import VariantRegistry

DEVICE_TRANSFERS = (("host", "device"), ("device", "host"))
DISK, REMOTE = "disk", "remote"  # the lowest tiers


class Metrics:
    """Metrics of a server.

    Args:
        model: name of the model that it serves.
        expert_metrics: whether tokens are shown by expert, by layer alone, or not at all.

    Attributes:
        access_refusals: returns how many requests each policy refused for each reason, if there may be policies.
    """

    def __init__(
        self,
        model: str,
        store: ExpertStore,
        engine: EngineStatistics,
        *,
        memory: MemoryUsage,
        prefetcher: Prefetcher | None = None,
        adapters: AdapterRegistry | None = None,
        variants: VariantRegistry | None = None,
        fill: Fill | None = None,
        repack: Fill | None = None,
        expert_metrics: Detail = "expert",
    ):
        self.access_refusals: Callable[[], Samples] | None = None
        self._adapters, self._variants, self._fill, self._repack = adapters, variants, fill, repack
        self._served = (model, version("greenroom"))
        self._store, self._engine, self._memory, self._prefetcher = store, engine, memory, prefetcher
        self._secret = secrets.token_bytes(16)
        self._lowest_tiers, self._caches = lowest_tiers(store.catalog), caches(store.catalog)
        self._tokens = ExpertTokens(
            {layer: len(entry.experts) for layer, entry in store.catalog.layers.items()}, expert_metrics
        )

    def render(self, *, hides_names: bool = False) -> bytes:
        """Return all metrics in Prometheus' text format. It takes milliseconds, so call it off the event loop.

        Args:
            hides_names: write the names of adapters, variants and policies as hashes that this process alone makes.
        """
        statistics, registry = self._store.statistics(), CollectorRegistry()
        scrape = _Scrape(
            self._served, self._store, statistics, engine=self._engine, memory=self._memory, prefetcher=self._prefetcher
        )
        scrape.adapters, scrape.variants = self._adapters, self._variants
        scrape.fill, scrape.repack = self._fill, self._repack
        scrape.access_refusals, scrape.lowest_tiers, scrape.caches = (
            self.access_refusals,
            self._lowest_tiers,
            self._caches,
        )
        registry.register(_Hashed(scrape, self._hash) if hides_names else scrape)
        return generate_latest(registry) + self._tokens.render(statistics.tokens)

    def _hash(self, name: str) -> str:
        return hashed(name, self._secret)


class _Hashed(Collector):
    """Metrics of another collector, with hashes in place of names."""

    def __init__(self, collector: Collector, hash_name: Callable[[str], str]):
        self._collector, self._hash = collector, hash_name

    def collect(self) -> Iterator[Metric]:
        for metric in self._collector.collect():
            metric.samples = [sample._replace(labels=self._without_names(sample.labels)) for sample in metric.samples]
            yield metric

    def _without_names(self, labels: Mapping[str, str]) -> dict[str, str]:
        return {label: self._hash(value) if label in NAME_LABELS else value for label, value in labels.items()}


class _Scrape(Collector):
    """Metrics at one moment, except the tokens of each expert."""

    def __init__(
        self,
        served: tuple[str, str],
        store: ExpertStore,
        statistics: StoreStatistics,
        *,
        engine: EngineStatistics,
        memory: MemoryUsage,
        prefetcher: Prefetcher | None,
    ):
        self.adapters: AdapterRegistry | None = None
        self.variants: VariantRegistry | None = None
        self.fill: Fill | None = None
        self.repack: Fill | None = None
        self.access_refusals: Callable[[], Samples] | None = None
        self.lowest_tiers: Sequence[str] = ()
        self.caches: Iterable[DiskCache] = ()
        self._served, self._store, self._statistics = served, store, statistics
        self._engine, self._memory, self._prefetcher = engine, memory, prefetcher

    def collect(self) -> Iterator[Metric]:
        yield gauge(
            "model_info", "1; the served model and the version of Greenroom.", ["model", "version"], [(self._served, 1)]
        )
        tiers = list(self._store.tiers().values())
        yield from _lookups(self._statistics, [*(tier.name for tier in tiers), *self.lowest_tiers])
        yield from _loads(self._statistics, len(tiers) > 1, self.lowest_tiers)
        yield from _residency(tiers, len(self._store.quarantined))
        states = [((state,), state == self._store.health) for state in get_args(StoreHealth)]
        text = "1 for the state of the expert store: failing if a thread died or a read does not return."
        yield gauge("expert_store_health", text, ["state"], states)
        yield from _hit_ratios(self._store.hit_ratios())
        yield _load_balance(self._store.load_balance(self._statistics))
        if self._prefetcher is not None:
            yield from _prefetching(self._prefetcher.statistics())
        yield from _engine(self._engine)
        yield from _memory(self._memory)
        text = "Lines of the log that were dropped, because standard error took none."
        yield counter("log_lines_dropped", text, [], [((), num_dropped_lines())])
        if self.adapters is not None:
            yield from adapter_metrics(self.adapters, self._served[0])
        if self.variants is not None:
            yield from variant_metrics(self.variants)
        if self.fill is not None:
            yield from _download(self.fill.progress())
        if self.caches:
            yield _cache_failures(self.caches)
        if self.repack is not None:
            yield from _repacking(self.repack)
        if self.access_refusals is not None:
            text = "Requests that the policy of a key refused."
            yield counter("policy_refusals", text, ["policy", "reason"], self.access_refusals())


def _lookups(statistics: StoreStatistics, tiers: Sequence[str]) -> Iterator[Metric]:
    def count(tier: str, phase: Phase) -> int:
        remote = statistics.remote_lookups[phase]
        return remote if tier == REMOTE else statistics.lookups[tier, phase] - (remote if tier == DISK else 0)

    lookups = [((tier, phase), count(tier, phase)) for tier in tiers for phase in PHASES]
    yield counter(
        "expert_lookups",
        "Expert look-ups, once a layer and step, by the tier in which they were found.",
        ["tier", "phase"],
        lookups,
    )
    text = "Look-ups of experts that the CPU computed, for lack of a slot on the device."
    yield counter("expert_cpu_computed", text, [], [((), statistics.host_computed)])
    stalls = [((phase,), statistics.stall_seconds[phase]) for phase in PHASES]
    yield counter("expert_stall_seconds", "Seconds that compute waited for experts.", ["phase"], stalls)
    prefetches = [((outcome,), statistics.prefetches[outcome]) for outcome in PREFETCH_OUTCOMES]
    yield counter("expert_prefetches", "Prefetched experts, by outcome.", ["outcome"], prefetches)


def _loads(statistics: StoreStatistics, has_device: bool, lowest: Sequence[str]) -> Iterator[Metric]:
    evictions = [((tier,), count) for tier, count in statistics.evictions.items()]
    failures = [(("host",), statistics.load_failures)]
    yield counter("expert_evictions", "Experts evicted from a tier.", ["tier"], evictions)
    yield counter("expert_load_failures", "Experts that could not be read.", ["tier"], failures)
    read, remote = statistics.loads.get((DISK, "host"), LoadStatistics()), statistics.remote_loads
    by_place = {DISK: read.less(remote), REMOTE: remote}
    loads = [((place, "host"), by_place[place]) for place in lowest]
    if has_device:
        loads += [(way, statistics.loads.get(way, LoadStatistics())) for way in DEVICE_TRANSFERS]
    loaded = [(way, load.nbytes) for way, load in loads]
    yield counter("expert_loaded_bytes", "Bytes of experts moved into a tier.", ["source", "target"], loaded)
    seconds = [(way, list(accumulate(load.buckets)), load.seconds) for way, load in loads]
    text = "Seconds from the request for an expert until it was in the tier."
    yield histogram("expert_load_seconds", text, ["source", "target"], LOAD_SECONDS_BUCKETS, seconds)


def _download(progress: FillProgress) -> Iterator[Metric]:
    yield gauge("download_bytes", "Bytes of the model that are on the disk.", [], [((), progress.held_bytes)])
    yield gauge("download_total_bytes", "Bytes of the model's files.", [], [((), progress.total_bytes)])
    left = [] if progress.seconds_left is None else [((), progress.seconds_left)]
    yield gauge("download_seconds_left", "Seconds until all of the model is on the disk, as it seems.", [], left)


def _repacking(repack: Fill) -> Iterator[Metric]:
    progress, cache = repack.progress(), repack.sources[0].cache
    text = "Bytes of experts that are in the cache as one record each."
    yield gauge("repack_cache_bytes", text, [], [((), progress.held_bytes)])
    text = "Bytes of the records of all experts that take several reads."
    yield gauge("repack_cache_total_bytes", text, [], [((), progress.total_bytes)])
    reads = [(("records",), cache.hit_bytes), (("checkpoint",), cache.remote_bytes)]
    yield counter("repack_cache_read_bytes", "Bytes of experts read, by where they were.", ["place"], reads)


def _cache_failures(caches: Iterable[DiskCache]) -> Metric:
    counts = sum((Counter(cache.failures()) for cache in caches), Counter())
    text = "Attempts to use the cache on a disk that failed, by reason; each cost a read of the source."
    return counter("disk_cache_failures", text, ["reason"], [((reason,), counts[reason]) for reason in FAILURES])


def _residency(tiers: Sequence[TierReport], num_quarantined: int) -> Iterator[Metric]:
    def by_tier(name: str, text: str, value: Callable[[TierReport], int]) -> Metric:
        return gauge(name, text, ["tier"], [((tier.name,), value(tier)) for tier in tiers])

    yield by_tier("expert_slots", "Expert slots of a tier.", lambda tier: tier.num_slots)
    yield by_tier("expert_resident", "Experts in a tier.", lambda tier: tier.num_resident)
    yield by_tier("expert_pinned", "Experts pinned in a tier.", lambda tier: tier.num_pinned)
    yield by_tier("expert_resident_bytes", "Bytes of the experts in a tier.", lambda tier: tier.resident_bytes)
    yield by_tier("expert_budget_bytes", "Memory budget of a tier in bytes.", lambda tier: tier.budget_bytes)
    yield gauge(
        "expert_quarantined", "Experts quarantined because their bytes are damaged.", [], [((), num_quarantined)]
    )


def _hit_ratios(ratios: HitRatios | None) -> Iterator[Metric]:
    realised = [] if ratios is None else [((), ratios.realised)]
    optimal = [] if ratios is None else [((), ratios.optimal)]
    yield gauge("expert_hit_ratio", "Part of recent expert look-ups that were in memory.", [], realised)
    yield gauge("expert_optimal_hit_ratio", "The hit ratio of optimal replacement on demand (Belady).", [], optimal)


def _load_balance(layers: Sequence[LayerBalance]) -> Metric:
    text = "Balance of recent tokens over a layer's experts: variation, maximum over mean, experts without a token."
    values = [
        ((str(each.layer), statistic), value)
        for each in layers
        for statistic, value in (("cv", each.cv), ("max_over_mean", each.max_over_mean), ("dead", len(each.dead)))
    ]
    return gauge("expert_load_balance", text, ["layer", "statistic"], values)


def _prefetching(prefetching: PrefetchStatistics) -> Iterator[Metric]:
    predicted = [((predictor,), prefetching.predicted[predictor]) for predictor in PREDICTORS]
    correct = [((predictor,), prefetching.correct[predictor]) for predictor in PREDICTORS]
    yield gauge(
        "expert_prefetch_active", "1 while prefetching is on because it pays.", [], [((), prefetching.is_active)]
    )
    yield counter("expert_predictions", "Experts predicted for the next layer.", ["predictor"], predicted)
    yield counter(
        "expert_correct_predictions",
        "Experts predicted for the next layer that the layer chose.",
        ["predictor"],
        correct,
    )


def _engine(engine: EngineStatistics) -> Iterator[Metric]:
    yield gauge("engine_alive", "1 while the engine's thread runs; 0 requires a restart.", [], [((), engine.is_alive)])
    yield gauge("num_requests_running", "Requests in the batch.", [], [((), engine.num_running)])
    yield gauge("num_requests_waiting", "Requests in the queue.", [], [((), engine.num_waiting)])
    yield gauge("num_requests_held", "Requests in the batch that wait for their slice.", [], [((), engine.num_held)])
    yield counter(
        "expert_turns", "Time slices in which some requests decoded while others waited.", [], [((), engine.num_slices)]
    )
    yield gauge(
        "expert_stall_share",
        "Part of recent decode time that was spent waiting for experts.",
        [],
        [((), engine.stall_share)],
    )
    yield gauge("kv_cache_usage_perc", "Part of the KV cache in use, 0 to 1.", [], [((), engine.kv_cache_usage)])
    yield counter("prompt_tokens", "Prompt tokens computed.", [], [((), engine.prompt_tokens)])
    yield counter("generation_tokens", "Tokens generated.", [], [((), engine.generation_tokens)])
    queries, hits = engine.prefix_cache_queries, engine.prefix_cache_hits
    yield counter("prefix_cache_queries", "Prompt tokens looked up in the KV cache.", [], [((), queries)])
    yield counter("prefix_cache_hits", "Prompt tokens found in the KV cache.", [], [((), hits)])
    yield counter(
        "num_preemptions", "Requests moved back to the queue, to be computed again.", [], [((), engine.preemptions)]
    )
    yield counter(
        "prefill_passes", "Passes that ran prompts layer by layer, to their end.", [], [((), engine.prefill_passes)]
    )
    text = "Bytes that chunks would probably have read again in place of passes: an estimate."
    yield counter("prefill_pass_saved_bytes", text, [], [((), engine.prefill_pass_saved_bytes)])
    steps = [((phase,), engine.steps[phase]) for phase in STEP_PHASES]
    yield counter("engine_steps", "Steps of the engine.", ["phase"], steps)
    seconds = [((phase,), engine.step_seconds[phase]) for phase in STEP_PHASES]
    yield counter(
        "engine_step_seconds", "Seconds of the engine's steps, from scheduling to publishing.", ["phase"], seconds
    )
    finished = [((reason,), engine.finished[reason]) for reason in FINISHED_REASONS]
    yield counter("request_success", "Requests that ended, by reason.", ["finished_reason"], finished)
    refused = [((), engine.num_refused)]
    yield counter("requests_refused", "Requests refused because the queue was full.", [], refused)
    yield from _latencies(engine.latencies)


def _memory(memory: MemoryUsage) -> Iterator[Metric]:
    parts = [((part,), nbytes) for part, nbytes in memory.by_part().items()]
    text = "Bytes of host memory by part; those of a step are reserved."
    yield gauge("memory_bytes", text, ["part"], parts)
    text = "Bytes of host memory that the server and its children may take."
    yield gauge("memory_budget_bytes", text, [], [((), memory.budget_bytes)])
    counts = [(adjustment, memory.adjustments.counts[adjustment]) for adjustment in ADJUSTMENTS]
    text = "Times that memory was taken from the experts or given back to them, by reason."
    yield counter("memory_adjustments", text, ["action", "reason"], counts)


def _latencies(latencies: Latencies) -> Iterator[Metric]:
    for name, text, latency in (
        ("request_queue_time_seconds", "Seconds from submission to a request's first step.", latencies.queue),
        ("time_to_first_token_seconds", "Seconds from submission to the first token.", latencies.first_token),
        ("inter_token_latency_seconds", "Seconds from a token of a request to its next.", latencies.inter_token),
        ("e2e_request_latency_seconds", "Seconds from submission to the end, stop or length.", latencies.request),
    ):
        yield histogram(name, text, [], latency.bounds, [((), latency.cumulative(), latency.sum)])
