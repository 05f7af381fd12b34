"""Benchmark of the cache policies' CPU time: ``python -m benchmarks.policies``.

Prints microseconds per hit (touch) and per miss (choice of a victim, removal, insertion) of every policy, with slot
shares of 16 layers, at several numbers of slots: medians over interleaved rounds. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time

from expert_store import ExpertKey
from expert_store.policies import POLICIES, Policy, make_policy

LAYERS = 16
SIZES = (100, 1_000, 10_000)
EXPERTS_PER_SLOT = 4
OPERATIONS = 2_000  # per round


class PolicyBenchmark:
    """Measures one full policy under skewed requests."""

    def __init__(self, name: str, num_slots: int):
        per_layer = -(-num_slots * EXPERTS_PER_SLOT // LAYERS)
        self.policy: Policy = make_policy(name, num_slots, dict.fromkeys(range(LAYERS), per_layer))
        self.draw = random.Random(num_slots)  # noqa: S311
        keys = [ExpertKey(layer, expert) for expert in range(per_layer) for layer in range(LAYERS)]
        self.resident, self.absent = keys[:num_slots], keys[num_slots:]
        for key in self.resident:
            self.policy.insert(key)
        self.touches: list[float] = []
        self.misses: list[float] = []

    def run_round(self) -> None:
        """Time touches, then misses."""
        size = len(self.resident)
        hits = [self.resident[int(size * self.draw.random() ** 2)] for _ in range(OPERATIONS)]
        started = time.perf_counter()
        for key in hits:
            self.policy.touch(key)
        self.touches.append((time.perf_counter() - started) / len(hits))
        self.draw.shuffle(self.absent)
        incoming = self.absent[:OPERATIONS]
        evicted = []
        started = time.perf_counter()
        for key in incoming:
            victim = self.policy.victim(key, _is_evictable)
            assert victim is not None
            self.policy.remove(victim)
            self.policy.insert(key)
            evicted.append(victim)
        self.misses.append((time.perf_counter() - started) / len(incoming))
        all_keys = {*self.resident, *self.absent}
        resident = {*self.resident, *incoming} - set(evicted)
        self.resident = sorted(resident)
        self.absent = sorted(all_keys - resident)


def _is_evictable(_: ExpertKey) -> bool:
    return True


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    benches = {(name, size): PolicyBenchmark(name, size) for size in SIZES for name in POLICIES}
    for _ in range(rounds):
        for bench in benches.values():
            bench.run_round()
    result: dict[str, dict[str, dict[str, float]]] = {}
    print(f"{'policy':8}{'slots':>8}{'touch us':>10}{'miss us':>10}")
    for (name, size), bench in benches.items():
        touch, miss = (round(1e6 * statistics.median(times), 2) for times in (bench.touches, bench.misses))
        print(f"{name:8}{size:8}{touch:10.2f}{miss:10.2f}")
        result.setdefault(name, {})[str(size)] = {"touch_us": touch, "miss_us": miss}
    print(json.dumps({"benchmark": "policies", "rounds": rounds, "operations": OPERATIONS, "policies": result}))


if __name__ == "__main__":
    main()
