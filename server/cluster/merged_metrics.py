"""Metrics of all replicas as one page: merged under their usual names, and by replica under names of their own.

Counters and histograms are sums, to which those of replicas that are gone belong: a sum that falls would be a restart
to Prometheus. Each gauge has its rule in ``GAUGES``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from server.observability.metric_families import NAME_LABELS

PREFIX, BY_REPLICA = "greenroom_", "greenroom_replica_"
HIDDEN = ("greenroom_expert_tokens",)  # one series for each expert: summed alone
SUMMED = frozenset({"counter", "histogram"})  # types whose samples grow only
NAMES = re.compile(
    rf'(?<=[{{,])({"|".join(NAME_LABELS)})="((?:[^"\\]|\\.)*)"'
)  # labels with names of weights and policies

Rule = Callable[[Sequence[float], str], float]  # of the replicas' values, and the sample's name and labels
HashName = Callable[[str], str]


def _sum(values: Sequence[float], _: str) -> float:
    return sum(values)


def _mean(values: Sequence[float], _: str) -> float:
    return fmean(values)


def _least(values: Sequence[float], _: str) -> float:
    return min(values)


def _largest(values: Sequence[float], _: str) -> float:
    return max(values)


def _health(values: Sequence[float], key: str) -> float:
    """Return 1 for "ok" if all replicas are, and for another state if one of them is in it."""
    return min(values) if 'state="ok"' in key else max(values)


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
    """Samples of one metric by their keys, which are their names and labels as they are written."""

    kind: str
    text: str
    values: dict[str, list[float]] = field(default_factory=dict)
    own: list[str] = field(default_factory=list)  # lines of each replica

    def head(self, name: str, more: str = "") -> list[str]:
        full = f"{name}_total" if self.kind == "counter" else name
        return [f"# HELP {full} {self.text}{more}", f"# TYPE {full} {self.kind}"]

    def lines(self, name: str) -> list[str]:
        """Return the merged samples; none of a gauge without a rule."""
        rule = _sum if self.kind in SUMMED else GAUGES.get(name.removeprefix(PREFIX))
        if rule is None:
            return []
        return self.head(name) + [f"{key} {_number(rule(values, key))}" for key, values in self.values.items()]


def merge_metrics(pages: Mapping[str, bytes], gone: Iterable[bytes] = (), hash_name: HashName | None = None) -> bytes:
    """Return the metrics of replicas in Prometheus' text format.

    Args:
        pages: the page of each replica that answers, by its name.
        gone: pages of others, whose counters and histograms belong to the sums.
        hash_name: hides the names of adapters, variants and policies.
    """
    families: dict[str, _Family] = {}
    for replica, page in pages.items():
        for name, family, key, value in _samples(page, families, hash_name):
            family.values.setdefault(key, []).append(value)
            if not name.startswith(HIDDEN):
                family.own.append(f"{_of_replica(key, replica)} {_number(value)}")
    for page in gone:
        for _, family, key, value in _samples(page, families, hash_name):
            # All replicas have unloaded weights that none of them names.
            if family.kind in SUMMED and (key in family.values or not NAMES.search(key)):
                family.values.setdefault(key, []).append(value)
    lines: list[str] = []
    for name, family in families.items():
        if family.values:
            lines += family.lines(name)
        if family.own:
            lines += family.head(name.replace(PREFIX, BY_REPLICA, 1), " By replica.") + family.own
    return ("\n".join(lines) + "\n" + ("" if pages else NO_REPLICA)).encode()


def sum_counts(pages: Iterable[bytes]) -> bytes:
    """Return a page with the sums of the counters and histograms of others."""
    families: dict[str, _Family] = {}
    for page in pages:
        for _, family, key, value in _samples(page, families):
            if family.kind in SUMMED:
                family.values.setdefault(key, []).append(value)
    lines = [line for name, family in families.items() if family.values for line in family.lines(name)]
    return ("\n".join(lines) + "\n").encode()


def _samples(
    page: bytes, families: dict[str, _Family], hash_name: HashName | None = None
) -> Iterator[tuple[str, _Family, str, float]]:
    """Yield the name of the family, the family, the key and the value of each sample of a page.

    It reads what ``Metrics.render`` writes. The parser of `prometheus_client`, which reads all that is allowed, takes
    thirty times as long, and there may be a sample for each expert.
    """
    name, text, family = "", "", _Family("", "")
    for line in page.decode().split("\n"):
        if line.startswith("# HELP "):
            text = line.split(" ", 3)[3]
        elif line.startswith("# TYPE "):
            full, kind = line.split(" ")[2:]
            name = full.removesuffix("_total") if kind == "counter" else full
            family = families.setdefault(name, _Family(kind, text))
        elif line:
            key, _, value = line.rpartition(" ")
            if hash_name is not None:
                key = _hidden(key, hash_name)
            yield name, family, key, float(value)


def _hidden(key: str, hash_name: HashName) -> str:
    return NAMES.sub(lambda found: f'{found[1]}="{hash_name(found[2])}"', key)


def _of_replica(key: str, replica: str) -> str:
    name, brace, labels = key.replace(PREFIX, BY_REPLICA, 1).partition("{")
    return f'{name}{{replica="{replica}"' + (f",{labels}" if brace else "}")


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 1 << 53 else repr(value)
