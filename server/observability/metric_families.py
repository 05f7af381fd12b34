"""Counters, gauges and histograms of Prometheus, whose names begin with ``greenroom_``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

NAME_LABELS = ("adapter", "variant", "policy")  # their values are names that policies may hide
Samples = Iterable[tuple[tuple[str, ...], float]]  # label values and the number


def hashed(name: str, secret: bytes) -> str:
    """Return a name as a hash, which only those who know a secret can make."""
    return hashlib.blake2b(name.encode(), key=secret, digest_size=8).hexdigest()


def counter(name: str, text: str, labels: Sequence[str], values: Samples) -> Metric:
    """Make a counter; ``_total`` is added to its name."""
    family = CounterMetricFamily(f"greenroom_{name}", text, labels=labels)
    for key, value in values:
        family.add_metric(key, value)
    return family


def histogram(
    name: str,
    text: str,
    labels: Sequence[str],
    bounds: Sequence[float],
    values: Iterable[tuple[tuple[str, ...], Sequence[int], float]],
) -> Metric:
    """Make a histogram.

    Args:
        values: label values, cumulative counts up to each bound and of all, and the sum.
    """
    family = HistogramMetricFamily(f"greenroom_{name}", text, labels=labels)
    ends = [*map(str, bounds), "+Inf"]
    for key, counts, total in values:
        family.add_metric(key, list(zip(ends, counts, strict=True)), total)
    return family


def gauge(name: str, text: str, labels: Sequence[str], values: Samples) -> Metric:
    """Make a gauge."""
    family = GaugeMetricFamily(f"greenroom_{name}", text, labels=labels)
    for key, value in values:
        family.add_metric(key, value)
    return family
