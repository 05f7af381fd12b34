"""Hit ratios of the policies: ``python -m benchmarks.hit_ratios``.

On the traces of the bundled model (mean of its domains, chat, four mixed streams) and on made-up routing of 48 layers
of 128 experts, top 8 (one stream and four): decode hit ratio by size, with and without shares of the layers, and
Belady's optimum. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.synthetic import skew, synthetic_trace
from expert_store.policies import POLICIES, LfruPolicy, LruPolicy, Policy
from expert_store.replay import ReplayResult, replay, replay_optimal, run_lease
from expert_store.tier import Tier
from expert_store.trace import Trace, read_trace

TRACES = Path(__file__).resolve().parent.parent / "server" / "demo" / "traces"
SHARES = (10, 15, 25, 35, 50, 75)  # per cent of the experts
Replay = Callable[[Trace, int], ReplayResult]


def replay_global(trace: Trace, make: Callable[[int], Policy], num_slots: int) -> ReplayResult:
    """One policy over all layers."""
    tier, result = Tier(num_slots, make(num_slots)), ReplayResult()
    for lease in trace.leases:
        result.count(lease, run_lease(tier, lease, num_slots), 1)
    return result


def rows() -> dict[str, Replay]:
    """Everything that is compared, by its name."""

    def shared(name: str) -> Replay:
        return lambda trace, num_slots: replay(trace, name, num_slots)

    def one_for_all(make: Callable[[int], Policy]) -> Replay:
        return lambda trace, num_slots: replay_global(trace, make, num_slots)

    return {
        **{name: shared(name) for name in POLICIES},
        "lru, one for all layers": one_for_all(LruPolicy),
        "lfru, one for all layers": one_for_all(LfruPolicy),
        "optimal": replay_optimal,
    }


def measure(traces: Sequence[Trace], replayed: Replay) -> list[float]:
    """Mean decode hit ratio over some traces, at each size."""
    ratios = []
    for share in SHARES:
        sizes = [sum(trace.header.layers.values()) * share // 100 for trace in traces]
        found = [replayed(trace, size).hit_ratio("decode") or 0.0 for trace, size in zip(traces, sizes, strict=True)]
        ratios.append(round(sum(found) / len(found), 4))
    return ratios


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400, help="of the made-up traces")
    steps = parser.parse_args().steps
    recorded = {path.name.removesuffix(".jsonl.gz"): read_trace(path) for path in sorted(TRACES.glob("*.gz"))}
    groups = {
        "bundled model, mean of eleven domains": [
            trace for name, trace in recorded.items() if name not in {"chat", "mixed"}
        ],
        "bundled model, chat": [recorded["chat"]],
        "bundled model, four mixed streams": [recorded["mixed"]],
        "made-up 48 x 128, one stream": [synthetic_trace(steps, 1, seed=0)],
        "made-up 48 x 128, four streams": [synthetic_trace(steps // 2, 4, seed=1)],
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
