"""Hit ratios of the cache policies: ``python -m benchmarks.hit_ratios``.

Replays routing logs of the bundled model (mean of its domains, chat, four mixed streams) and synthetic routing of 48
layers of 128 experts, top 8 (one stream and four). Prints decode hit ratios by cache size, with and without slot shares
per layer, and Belady's optimum. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.synthetic_routing import skew, synthetic_trace
from expert_store.policies import POLICIES, LfruPolicy, LruPolicy, Policy
from expert_store.routing_log.log import RoutingLog, read_routing_log
from expert_store.routing_log.replay import ReplayResult, replay, replay_lease, replay_optimal
from expert_store.tier import Tier

TRACES = Path(__file__).resolve().parent.parent / "server" / "demo" / "traces"
SHARES = (10, 15, 25, 35, 50, 75)  # percent of the experts
Replay = Callable[[RoutingLog, int], ReplayResult]


def replay_global(trace: RoutingLog, make: Callable[[int], Policy], num_slots: int) -> ReplayResult:
    """Replay a log with one policy over all layers, without shares."""
    tier, result = Tier(num_slots, make(num_slots)), ReplayResult()
    for lease in trace.leases:
        result.count(lease, replay_lease(tier, lease, num_slots), 1)
    return result


def rows() -> dict[str, Replay]:
    """Return all compared policies by name."""

    def shared(name: str) -> Replay:
        return lambda trace, num_slots: replay(trace, name, num_slots)

    def global_policy(make: Callable[[int], Policy]) -> Replay:
        return lambda trace, num_slots: replay_global(trace, make, num_slots)

    return {
        **{name: shared(name) for name in POLICIES},
        "lru, no layer shares": global_policy(LruPolicy),
        "lfru, no layer shares": global_policy(LfruPolicy),
        "optimal": replay_optimal,
    }


def measure(traces: Sequence[RoutingLog], replayed: Replay) -> list[float]:
    """Return the mean decode hit ratio over the logs, at each size."""
    ratios = []
    for share in SHARES:
        sizes = [sum(trace.header.layers.values()) * share // 100 for trace in traces]
        found = [replayed(trace, size).hit_ratio("decode") or 0.0 for trace, size in zip(traces, sizes, strict=True)]
        ratios.append(round(sum(found) / len(found), 4))
    return ratios


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400, help="length of the synthetic logs")
    steps = parser.parse_args().steps
    recorded = {path.name.removesuffix(".jsonl.gz"): read_routing_log(path) for path in sorted(TRACES.glob("*.gz"))}
    groups = {
        "bundled model, mean of eleven domains": [
            trace for name, trace in recorded.items() if name not in {"chat", "mixed"}
        ],
        "bundled model, chat": [recorded["chat"]],
        "bundled model, four mixed streams": [recorded["mixed"]],
        "synthetic 48 x 128, one stream": [synthetic_trace(steps, 1, seed=0)],
        "synthetic 48 x 128, four streams": [synthetic_trace(steps // 2, 4, seed=1)],
    }
    result = {}
    for group, traces in groups.items():
        skews = [skew(trace) for trace in traces]
        mean_skew = {name: round(sum(each[name] for each in skews) / len(skews), 3) for name in skews[0]}
        print(f"\n{group} {mean_skew}\n| policy | " + " | ".join(f"{share} %" for share in SHARES) + " |")
        print("| --- |" + " --- |" * len(SHARES))
        ratios = {}
        for name, replayed in rows().items():
            ratios[name] = measure(traces, replayed)
            print(f"| {name} | " + " | ".join(f"{ratio:.3f}" for ratio in ratios[name]) + " |", flush=True)
        result[group] = {"skew": mean_skew, "decode_hit_ratio": ratios}
    print(json.dumps({"benchmark": "hit_ratios", "shares_percent": SHARES, "groups": result}))


if __name__ == "__main__":
    main()
