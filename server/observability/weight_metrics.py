"""Metrics of the adapters and the expert variants that are loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import Metric

from server.engine.histogram import Histogram
from server.engine.interface import ExpertUsage
from server.observability.metric_families import counter, gauge, histogram
from server.weights.adapter_registry import AdapterRegistry
from server.weights.request_costs import FIRST_TOKEN_BOUNDS, OUTPUT_TOKEN_BOUNDS, REQUEST_BOUNDS, RequestCosts
from server.weights.variant_registry import VariantRegistry

COUNTERS: tuple[tuple[str, str, Callable[[ExpertUsage], float]], ...] = (
    ("lookups", "Expert look-ups of ended requests", lambda usage: usage.num_requests),
    ("misses", "Look-ups of experts that had to be read, of ended requests", lambda usage: usage.num_misses),
    ("stall_seconds", "Seconds that ended requests waited for experts", lambda usage: usage.stall_seconds),
)
HISTOGRAMS: tuple[tuple[str, str, Callable[[RequestCosts], Histogram], Sequence[float]], ...] = (
    (
        "time_to_first_token",
        "Seconds from submission to the first token of requests",
        lambda costs: costs.first_token,
        FIRST_TOKEN_BOUNDS,
    ),
    (
        "time_per_output_token",
        "Mean seconds between tokens of requests",
        lambda costs: costs.output_token,
        OUTPUT_TOKEN_BOUNDS,
    ),
    (
        "e2e_request_latency",
        "Seconds from submission to the end, stop or length, of requests",
        lambda costs: costs.request,
        REQUEST_BOUNDS,
    ),
)


def adapter_metrics(adapters: AdapterRegistry, base: str) -> Iterator[Metric]:
    """Yield the metrics of registered adapters only, so that labels are bounded."""
    uses = adapters.uses()
    counts = [((use.name,), use.num_requests) for use in uses]
    yield counter("adapter_requests", "Requests that used an adapter.", ["adapter"], counts)
    routed = [((base if name is None else name,), count) for name, count in adapters.num_routed().items()]
    text = "Requests for the model auto, by the adapter that the router has chosen, or the base model."
    yield counter("adapter_routed_requests", text, ["adapter"], routed)
    tokens = [((use.name,), use.num_tokens) for use in uses]
    text = "Tokens computed with an adapter; of those whose adapters were chosen for each, its mean weight."
    yield counter("adapter_tokens", text, ["adapter"], tokens)
    shares = [((name,), share) for name, share in adapters.routed_tokens().items()]
    text = "Tokens whose adapters were chosen for each, by the mean weight of each adapter over the layers."
    yield counter("adapter_routed_tokens", text, ["adapter"], shares)
    resident = [((use.name, "host"), use.is_resident) for use in uses]
    yield gauge("adapter_resident", "1 while an adapter is in the tier.", ["adapter", "tier"], resident)
    memory = adapters.memory_use()
    text = "Bytes of memory for adapters."
    yield gauge("adapter_memory_budget_bytes", text, [], [((), memory.budget_bytes)])
    text = "Pages of adapters read from disk."
    yield counter("adapter_page_loads", text, [], [((), memory.loads)])
    text = "Pages of adapters evicted to make room."
    yield counter("adapter_page_evictions", text, [], [((), memory.evictions)])
    text = "Adapters that could not be loaded for a request."
    yield counter("adapter_load_failures", text, [], [((), memory.load_failures)])
    yield from _costs("adapter", "adapter_expert", adapters.costs(), "adapter")


def variant_metrics(variants: VariantRegistry) -> Iterator[Metric]:
    """Yield the metrics of loaded variants only, so that labels are bounded."""
    uses = variants.uses()
    counts = [((use.name,), use.num_requests) for use in uses]
    yield counter("expert_variant_requests", "Requests that used an expert variant.", ["variant"], counts)
    tokens = [((use.name,), use.num_tokens) for use in uses]
    yield counter("expert_variant_tokens", "Tokens routed to the experts of a variant.", ["variant"], tokens)
    yield from _costs("expert_variant", "expert_variant", variants.costs(), "variant")


def _costs(prefix: str, expert_prefix: str, costs: Sequence[tuple[str, RequestCosts]], label: str) -> Iterator[Metric]:
    """Yield the costs of requests by the name of their weights.

    Args:
        prefix: of the names of latencies.
        expert_prefix: of the names of what experts cost.
    """
    for name, text, value in COUNTERS:
        values = [((each,), value(cost.usage)) for each, cost in costs]
        yield counter(f"{expert_prefix}_{name}", f"{text}, by {label}.", [label], values)
    for name, text, histogram_of, bounds in HISTOGRAMS:
        found = [(histogram_of(cost), each) for each, cost in costs]
        samples = [((each,), part.cumulative(), part.sum) for part, each in found]
        yield histogram(f"{prefix}_{name}_seconds", f"{text}, by {label}.", [label], bounds, samples)
