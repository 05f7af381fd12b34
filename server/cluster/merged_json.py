"""Views of several replicas as one: counts are summed, ratios and the seconds that they are made of are averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

AVERAGED = frozenset(
    {
        "hit_ratio",
        "optimal_hit_ratio",
        "kv_cache_usage",
        "mean",
        "p50",
        "p95",
        "p99",
        "share",
        "stall_seconds",
        "step_seconds",
    }
)
SAME = frozenset(
    {
        "layer",
        "expert",
        "bytes",
        "page_bytes",
        "version",
        "rank",
        "created",
        "max_tokens",
        "num_parameters",
        "total_experts",
    }
)
LARGEST = frozenset({"uptime_seconds"})
TIERS = ("device", "host", "disk", "remote")  # the fastest first


def merged(values: Sequence[Any], name: str = "") -> Any:
    """Merge the values that replicas gave under one name.

    Numbers are summed, averaged or taken as they are, by name. Objects are merged by their names, lists of objects item
    by item if all have as many. Of anything else the first value counts, and of the tier "disk", which is the model's.
    """
    known = [value for value in values if value is not None]
    first = known[0] if known else None
    if name == "residency" and isinstance(first, str):
        return min(known, key=TIERS.index)
    if isinstance(first, int | float):
        return any(known) if isinstance(first, bool) else _number(known, name)
    if name == "disk" and isinstance(first, dict):
        return first  # the files of the model, which all replicas read
    if isinstance(first, dict):
        names = dict.fromkeys(each for value in known for each in value)
        return {each: merged([value.get(each) for value in known], each) for each in names}
    if isinstance(first, list) and len({len(value) for value in known}) == 1:
        return [merged(list(items), name) for items in zip(*known, strict=True)]
    return first


def _number(values: Sequence[float], name: str) -> float:
    if name in SAME:
        return values[0]
    if name in LARGEST:
        return max(values)
    return sum(values) / len(values) if name in AVERAGED else sum(values)
