"""Benchmark of batch-invariant arithmetic: ``python -m benchmarks.deterministic [--model FOLDER]``.

Interleaves steps of a trunk with the default and one with batch-invariant arithmetic, all experts in memory: decodes of
1 and 8 sequences of 256 tokens, and a prefill of 256 tokens. Prints median milliseconds of CPU time of the one compute
thread, which other processes hardly affect. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from expert_store import ExpertStore
from server.model.attention.kv_cache import KVCache
from server.model.checkpoint.locate import BUNDLED
from server.model.checkpoint.trunk_loader import load_trunk, read_config
from server.model.dtype import compute_dtype
from server.model.step import SequenceChunk
from server.model.trunk import Trunk

CONTEXT, BLOCK_SIZE, MAX_STREAMS = 256, 16, 8
BLOCKS = CONTEXT // BLOCK_SIZE + 1
ARITHMETICS = ("usual", "deterministic")


class TimedTrunk:
    """A trunk with sequences of ``CONTEXT`` tokens in its cache."""

    def __init__(self, trunk: Trunk, store: ExpertStore):
        self._trunk, self._store = trunk, store
        groups = trunk.facts.kv_groups
        self._cache = KVCache(groups, [BLOCKS * MAX_STREAMS] * len(groups), BLOCK_SIZE)
        random = np.random.default_rng(0)
        self._texts = random.integers(trunk.vocab_size, size=(MAX_STREAMS, CONTEXT + 1)).tolist()
        for stream in range(MAX_STREAMS):
            self._run([self._chunk(stream, 0, CONTEXT)])

    def decode_seconds(self, num_streams: int) -> float:
        return self._run([self._chunk(stream, CONTEXT, CONTEXT + 1) for stream in range(num_streams)])

    def prefill_seconds(self) -> float:
        return self._run([self._chunk(0, 0, CONTEXT)])

    def _chunk(self, stream: int, first: int, last: int) -> SequenceChunk:
        blocks = list(range(stream * BLOCKS, (stream + 1) * BLOCKS))
        return SequenceChunk(self._texts[stream][first:last], first, [blocks] * len(self._cache.groups))

    def _run(self, chunks: Sequence[SequenceChunk]) -> float:
        started = time.thread_time()
        self._trunk.forward(chunks, self._cache, self._store)
        return time.thread_time() - started


def measure(folder: Path, dtype: torch.dtype, rounds: int) -> dict[str, dict[str, float]]:
    """Return median milliseconds by kind of step and arithmetic, and their ratio."""
    trunks = [load_trunk(folder, dtype, is_deterministic=name == "deterministic") for name in ARITHMETICS]
    store = ExpertStore(trunks[0].catalog, trunks[0].catalog.total_bytes)
    timed = {name: TimedTrunk(trunk, store) for name, trunk in zip(ARITHMETICS, trunks, strict=True)}
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for name, trunk in timed.items():
            for streams in (1, MAX_STREAMS):
                seconds.setdefault((f"decode of {streams}", name), []).append(trunk.decode_seconds(streams))
            seconds.setdefault((f"prefill of {CONTEXT}", name), []).append(trunk.prefill_seconds())
    store.close()
    results: dict[str, dict[str, float]] = {}
    for (kind, name), values in seconds.items():
        results.setdefault(kind, {})[name] = round(statistics.median(values) * 1000, 2)
    for result in results.values():
        result["ratio"] = round(result["deterministic"] / result["usual"], 2)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=BUNDLED, help="a checkpoint or a packed folder")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dtype = compute_dtype(arguments.dtype, read_config(arguments.model), torch.device("cpu"))
    results = measure(arguments.model, dtype, arguments.rounds)
    for kind, result in results.items():
        print(f"{kind:>14}: " + ", ".join(f"{name} {value}" for name, value in result.items()))
    print(json.dumps({"dtype": str(dtype), "milliseconds": results}))


if __name__ == "__main__":
    main()
