"""Metrics of all replicas as one page: merged under their usual names, and by replica under names of their own.

Counters and histograms are sums, to which those of replicas that are gone belong: a sum that falls would be a restart
to Prometheus. Each gauge has its rule in ``GAUGES``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from server.observability.metric_families import NAME_LABELS

PREFIX, BY_REPLICA = "greenroom_", "greenroom_replica_"
HIDDEN = ("greenroom_expert_tokens",)  # one series for each expert: summed alone
SUMMED = frozenset({"counter", "histogram"})  # types whose samples grow only

Labels = tuple[tuple[str, str], ...]
Rule = Callable[[Sequence[float], Mapping[str, str]], float]  # of the replicas' values, and the labels


def _sum(values: Sequence[float], _: Mapping[str, str]) -> float:
    return sum(values)


def _mean(values: Sequence[float], _: Mapping[str, str]) -> float:
    return fmean(values)


def _least(values: Sequence[float], _: Mapping[str, str]) -> float:
    return min(values)


def _largest(values: Sequence[float], _: Mapping[str, str]) -> float:
    return max(values)


def _health(values: Sequence[float], labels: Mapping[str, str]) -> float:
    """Return 1 for "ok" if all replicas are, and for another state if one of them is in it."""
    return min(values) if labels.get("state") == "ok" else max(values)


GAUGES: Mapping[str, Rule] = {
    "model_info": _largest,  # 1
    "engine_alive": _least,  # 0 if one is dead
    "num_requests_running": _sum,
    "num_requests_waiting": _sum,
    "num_requests_held": _sum,
    "kv_cache_usage_perc": _mean,
    "expert_stall_share": _mean,
    "expert_hit_ratio": _mean,
    "expert_optimal_hit_ratio": _mean,
    "expert_load_balance": _mean,
    "expert_store_health": _health,
    "expert_prefetch_active": _largest,  # 1 if it is on in one
    "expert_slots": _sum,
    "expert_resident": _sum,
    "expert_pinned": _sum,
    "expert_quarantined": _sum,
    "expert_resident_bytes": _sum,
    "expert_budget_bytes": _sum,
    "memory_bytes": _sum,
    "memory_budget_bytes": _sum,
    "adapter_memory_budget_bytes": _sum,
    "adapter_resident": _largest,  # 1 if one has it
    "download_bytes": _sum,
    "download_total_bytes": _sum,
    "download_seconds_left": _largest,
}
NO_REPLICA = """\
# HELP greenroom_engine_alive 1 while the engine's thread runs; 0 requires a restart.
# TYPE greenroom_engine_alive gauge
greenroom_engine_alive 0
"""


@dataclass
class _Family:
    kind: str
    text: str
    values: dict[tuple[str, Labels], list[float]] = field(default_factory=dict)  # by name and labels of the sample
    own: list[str] = field(default_factory=list)  # lines of each replica

    def head(self, name: str, text: str) -> list[str]:
        full = f"{name}_total" if self.kind == "counter" else name
        kind = "untyped" if self.kind == "unknown" else self.kind
        return [f"# HELP {full} {_escaped(text)}", f"# TYPE {full} {kind}"]

    def lines(self, name: str) -> list[str]:
        """Return the merged samples; none of a gauge without a rule."""
        rule = _sum if self.kind in SUMMED else GAUGES.get(name.removeprefix(PREFIX))
        if rule is None:
            return []
        samples = [_line(each, labels, rule(values, dict(labels))) for (each, labels), values in self.values.items()]
        return self.head(name, self.text) + samples


def merge_metrics(
    pages: Mapping[str, bytes], gone: Iterable[bytes] = (), hash_name: Callable[[str], str] | None = None
) -> bytes:
    """Return the metrics of replicas in Prometheus' text format.

    Args:
        pages: the page of each replica that answers, by its name.
        gone: pages of others, whose counters and histograms belong to the sums.
        hash_name: hides the names of adapters, variants and policies.
    """
    families: dict[str, _Family] = {}
    for replica, page in pages.items():
        for metric, family in _read(page, families):
            for sample in metric.samples:
                labels = _labels(sample.labels, hash_name)
                family.values.setdefault((sample.name, labels), []).append(float(sample.value))
                if not metric.name.startswith(HIDDEN):
                    name = sample.name.replace(PREFIX, BY_REPLICA, 1)
                    family.own.append(_line(name, (("replica", replica), *labels), float(sample.value)))
    for page in gone:
        _add_counts(page, families, hash_name, only_loaded=True)
    lines: list[str] = []
    for name, family in families.items():
        lines += family.lines(name)
        if family.own:
            lines += family.head(name.replace(PREFIX, BY_REPLICA, 1), f"{family.text} By replica.") + family.own
    return ("\n".join(lines) + "\n" + ("" if pages else NO_REPLICA)).encode()


def sum_counts(pages: Iterable[bytes]) -> bytes:
    """Return a page with the sums of the counters and histograms of others."""
    families: dict[str, _Family] = {}
    for page in pages:
        _add_counts(page, families, None, only_loaded=False)
    lines = [line for name, family in families.items() for line in family.lines(name)]
    return ("\n".join(lines) + "\n").encode()


def _add_counts(
    page: bytes, families: dict[str, _Family], hash_name: Callable[[str], str] | None, *, only_loaded: bool
) -> None:
    """Add the counters and histograms of a page.

    Args:
        only_loaded: leave out those of adapters, variants and policies that no other page names, as all are unloaded.
    """
    for metric, family in _read(page, families, SUMMED):
        for sample in metric.samples:
            key = (sample.name, _labels(sample.labels, hash_name))
            if only_loaded and key not in family.values and not sample.labels.keys().isdisjoint(NAME_LABELS):
                continue
            family.values.setdefault(key, []).append(float(sample.value))


def _read(
    page: bytes, families: dict[str, _Family], kinds: frozenset[str] | None = None
) -> Iterator[tuple[Metric, _Family]]:
    for metric in text_string_to_metric_families(page.decode()):
        if kinds is None or metric.type in kinds:
            yield metric, families.setdefault(metric.name, _Family(metric.type, metric.documentation))


def _labels(labels: Mapping[str, str], hash_name: Callable[[str], str] | None) -> Labels:
    hidden = {} if hash_name is None else {each: hash_name(labels[each]) for each in NAME_LABELS if each in labels}
    return tuple(sorted({**labels, **hidden}.items()))


def _line(name: str, labels: Iterable[tuple[str, str]], value: float) -> str:
    inside = ",".join(f'{label}="{_escaped(text, quotes=True)}"' for label, text in labels)
    number = repr(value) if value != int(value) else str(int(value)) if abs(value) < 1 << 53 else repr(value)
    return f"{name}{{{inside}}} {number}" if inside else f"{name} {number}"


def _escaped(text: str, *, quotes: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text
