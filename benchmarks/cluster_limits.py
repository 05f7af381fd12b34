"""Costs of what an ingress knows of its replicas, by their number: ``python -m benchmarks.cluster_limits``.

Measures on one core, with states as replicas of a large model tell them: the choice of a replica for a request, the
taking of a report, the memory for what is known, and the bytes of a report and of the statistics that Serve's
controller passes on. What follows from that is calculated: requests a second that one ingress chooses for, the age of
what it knows of a replica, the share of a core that reports take, and the bytes that the controller sends to each
ingress when one replica has changed. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import pickle
import random
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count

import numpy as np
import psutil

from server.cluster.frontend import REPORT_SECONDS, REPORTS_PER_SECOND
from server.cluster.routing_statistics import statistics_of
from server.cluster.scoring import Fleet, ReplicaState
from server.cluster.signatures import RoutedRequest, Signature

PROMPT_BLOCKS = 128
ROUNDS = 5  # of which the best counts
NUM_REPORTS = 4 * ROUNDS


def state(rng: np.random.Generator, shape: tuple[int, int], num_blocks: int, number: int) -> ReplicaState:
    """Return the state of a replica whose blocks no other one has."""
    blocks = frozenset(rng.bytes(8) for _ in range(num_blocks))
    return ReplicaState(int(rng.integers(8)), blocks, frozenset(), rng.random(shape) < 0.5, number)


def microseconds(work: Callable[[], object], num_calls: int) -> float:
    """Return the processor time of a call, the best of some rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(num_calls):
            work()
        best = min(best, time.process_time() - began)
    return 1e6 * best / num_calls


def measure(num_replicas: int, shape: tuple[int, int], num_blocks: int) -> dict[str, float]:
    """Measure with so many replicas."""
    rng = np.random.default_rng(0)
    gc.collect()
    before = psutil.Process().memory_info().rss
    fleet = Fleet(rng=random.Random(0))  # noqa: S311  no secret
    for number in range(num_replicas):
        fleet.update(str(number), state(rng, shape, num_blocks, 1))
    gc.collect()
    memory = psutil.Process().memory_info().rss - before
    told = state(rng, shape, num_blocks, 2)
    numbers = count(told.number)
    newest = [replace(told, number=next(numbers)) for _ in range(NUM_REPORTS)]
    signature = Signature.from_counts(rng.random(shape))
    request = RoutedRequest(16 * PROMPT_BLOCKS, [rng.bytes(8) for _ in range(PROMPT_BLOCKS)])
    choice = microseconds(lambda: fleet.order(request, signature), 20)
    report = microseconds(lambda: fleet.update("0", newest.pop(0)), NUM_REPORTS // ROUNDS)
    statistics_bytes = len(pickle.dumps(statistics_of(told)))
    return {
        "choice_us": round(choice),
        "report_us": round(report),
        "memory_mib": round(memory / (1 << 20), 1),
        "report_bytes": len(pickle.dumps(told)),
        "choices_per_second": round(1e6 / choice),
        "age_seconds": round(max(REPORT_SECONDS, num_replicas / REPORTS_PER_SECOND), 1),
        "core_for_reports": round(min(REPORTS_PER_SECOND, num_replicas / REPORT_SECONDS) * report / 1e6, 3),
        "controller_bytes": num_replicas * statistics_bytes,
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", default="10,100,1000,10000", help="numbers of replicas")
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=4096, help="of the prefix cache that a replica tells")
    parser.add_argument("--max-blocks", type=int, default=1_000_000, help="of all replicas; more are left out")
    arguments = parser.parse_args()
    result: dict[str, dict[str, float]] = {}
    for num_replicas in map(int, arguments.replicas.split(",")):
        num_blocks = min(arguments.blocks, arguments.max_blocks // num_replicas)
        row = measure(num_replicas, (arguments.layers, arguments.experts), num_blocks)
        if not result:
            print("| replicas | blocks of each | " + " | ".join(row) + " |\n" + "| --- " * (len(row) + 2) + "|")
        print(f"| {num_replicas} | {num_blocks} | " + " | ".join(map(str, row.values())) + " |", flush=True)
        result[str(num_replicas)] = row
    print(json.dumps({**result, "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
