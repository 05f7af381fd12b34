"""Benchmark of prefetching: off, by router, by co-activation, and automatic.

    python -m benchmarks.prefetch --checkpoint DIR          # writes 3.3 GB there, unless it exists
    python -m benchmarks.prefetch --model bundled

Each mode has its own store, and all modes run the same tokens, alternating after segments of steps; each segment begins
with a different mode. ``gate`` and ``coactivation`` prefetch in every step; with ``auto``, the governor decides.
``control`` is a second run of ``off``: differences in tokens/s are significant only if they clearly exceed the
difference of these two. CPU seconds of the computing thread, hits and reads hardly depend on other processes. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.skewed_checkpoint import skew, topical_tokens, write_skewed_checkpoint
from expert_store import ExpertStore, Prefetcher, PrefetchMode, make_prefetcher
from expert_store.prefetching.governor import Governor
from expert_store.sources.file import DirectFile
from server.model.attention.kv_cache import KVCache
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.checkpoint.locate import BUNDLED
from server.model.checkpoint.read_config import read_config
from server.model.dtype import compute_dtype
from server.model.step import SequenceChunk
from server.model.text.tokenizer import Tokenizer
from server.model.trunk.trunk import Trunk
from server.model.trunk_loader import load_trunk

MODES: dict[str, PrefetchMode] = {
    "off": "off",
    "gate": "gate",
    "coactivation": "coactivation",
    "auto": "auto",
    "control": "off",
}
BLOCK_SIZE = 16
WARM_UP = 32  # steps that fill the caches; not measured
PROMPT = "Once upon a time"
TEMPERATURE = 0.7


class AlwaysOn(Governor):
    """A governor that prefetches in every step."""

    @property
    def is_active(self) -> bool:
        return True


class IndexRecorder:
    """A prefetcher that only records the chosen experts."""

    def __init__(self) -> None:
        self.chosen: dict[int, list[np.ndarray]] = {}

    def observe(self, layer: int, top_k_index: np.ndarray, hidden_states: torch.Tensor) -> None:
        del hidden_states
        self.chosen.setdefault(layer, []).append(top_k_index.copy())

    def begin_step(self) -> None:
        """Do nothing."""

    def ask(self) -> None:
        """Do nothing."""

    def end_step(self, seconds: float) -> None:
        """Do nothing."""

    @property
    def index(self) -> np.ndarray:
        """RoutedExperts experts, ``(layers, tokens, k)``."""
        return np.stack([np.concatenate(rows) for rows in self.chosen.values()])


@dataclass
class ModeRun:
    """A run of one mode, with its own store, KV cache and position in the text."""

    trunk: Trunk
    store: ExpertStore
    prefetcher: Any
    cache: KVCache
    table: Sequence[int]
    position: int = 0
    rates: list[float] = field(default_factory=list)  # tokens/s by segment
    stalls: list[float] = field(default_factory=list)  # seconds per token by segment
    cpu: list[float] = field(default_factory=list)  # CPU seconds of the computing thread per token by segment

    def run(self, streams: Sequence[Sequence[int]], steps: int) -> float:
        """Run steps with one token of each stream. Return their seconds."""
        started = time.perf_counter()
        blocks = len(self.table) // len(streams)
        for _ in range(steps):
            chunks = [
                SequenceChunk([stream[self.position]], self.position, [self.table[blocks * row : blocks * (row + 1)]])
                for row, stream in enumerate(streams)
            ]
            self.trunk.forward(chunks, self.cache, self.store, self.prefetcher)
            self.position += 1
        return time.perf_counter() - started


def open_run(trunk: Trunk, mode: PrefetchMode, share: float, num_streams: int, length: int) -> ModeRun:
    store = ExpertStore(trunk.catalog, int(share * trunk.catalog.total_bytes))
    experts_per_layer = {layer: len(entry.experts) for layer, entry in trunk.catalog.layers.items()}
    prefetcher = make_prefetcher(mode, store, experts_per_layer, trunk.gates)
    if prefetcher is not None and mode != "auto":
        prefetcher._governor = AlwaysOn()  # noqa: SLF001
    num_blocks = num_streams * -(-length // BLOCK_SIZE)
    cache = KVCache(trunk.facts.kv_groups, [num_blocks], BLOCK_SIZE)
    return ModeRun(trunk, store, prefetcher, cache, range(num_blocks))


def sampled_streams(trunk: Trunk, num_streams: int, length: int) -> list[list[int]]:
    """Sample texts of the bundled model, one seed per text."""
    streams = []
    for seed in range(num_streams):
        random = torch.Generator().manual_seed(seed)
        run = open_run(trunk, "off", 1.0, 1, length)
        tokens = Tokenizer(FolderCheckpoint(BUNDLED)).encode(PROMPT)
        for position in range(length - 1):
            chunk = SequenceChunk([tokens[position]], position, [run.table])
            logits = trunk.forward([chunk], run.cache, run.store).logits
            if position + 1 == len(tokens):
                tokens.append(int(torch.multinomial((logits[0] / TEMPERATURE).softmax(-1), 1, generator=random)))
        run.store.close()
        streams.append(tokens)
    return streams


def measure(
    trunk: Trunk, streams: Sequence[Sequence[int]], share: float, segments: int, segment_steps: int
) -> dict[str, Any]:
    length = len(streams[0])
    runs = {name: open_run(trunk, mode, share, len(streams), length) for name, mode in MODES.items()}
    for run in runs.values():
        run.run(streams, WARM_UP)
    before = {name: run.store.statistics() for name, run in runs.items()}
    for segment in range(segments):
        first = segment % len(runs)
        for run in [*runs.values()][first:] + [*runs.values()][:first]:
            stalled = run.store.statistics().stall_seconds["decode"]
            computed = time.thread_time()
            seconds = run.run(streams, segment_steps)
            tokens = segment_steps * len(streams)
            run.cpu.append((time.thread_time() - computed) / tokens)
            run.rates.append(tokens / seconds)
            run.stalls.append((run.store.statistics().stall_seconds["decode"] - stalled) / tokens)
    results = {name: report(run, before[name]) for name, run in runs.items()}
    for run in runs.values():
        run.store.close()
    return results


def report(run: ModeRun, before: Any) -> dict[str, Any]:
    after = run.store.statistics()
    lookups = after.lookups - before.lookups
    total = sum(lookups.values())
    result = {
        "tokens_per_second": round(statistics.median(run.rates), 2),
        "cpu_seconds_per_token": round(statistics.median(run.cpu), 5),
        "stall_seconds_per_token": round(statistics.median(run.stalls), 5),
        "hit_ratio": round(1 - lookups["disk", "decode"] / total, 3),
        "megabytes_read_per_lookup": round((after.loaded_bytes - before.loaded_bytes) / total / 1e6, 4),
        "prefetches": {name: after.prefetches[name] - before.prefetches[name] for name in ("used", "late", "wasted")},
        "prefetches_per_lookup": round(
            sum((after.prefetches - before.prefetches)[name] for name in ("used", "late", "wasted")) / total, 3
        ),
    }
    if isinstance(run.prefetcher, Prefetcher):
        found = run.prefetcher.statistics()
        recall = list(found.recall.values())
        result["recall"] = round(sum(recall) / len(recall), 3) if recall else None
        result["recall_by_predictor"] = {
            name: round(found.correct[name] / count, 3) for name, count in found.predicted.items() if count
        }
        if not isinstance(run.prefetcher._governor, AlwaysOn):  # noqa: SLF001
            result["is_active"] = found.is_active
            result["seconds_with"], result["seconds_without"] = found.seconds_with, found.seconds_without
    return result


def routing_skew(trunk: Trunk, stream: Sequence[int]) -> dict[str, float]:
    run = open_run(trunk, "off", 1.0, 1, len(stream))
    run.prefetcher = recorder = IndexRecorder()
    run.run([stream], min(256, len(stream)))
    run.store.close()
    return skew(recorder.index, trunk.catalog.num_experts)


def delay_reads(seconds: float) -> None:
    """Delay every read of an expert, to simulate slower disks."""
    read = DirectFile.read

    def slowed(*arguments: Any) -> None:
        read(*arguments)
        time.sleep(seconds)

    DirectFile.read = slowed  # type: ignore[assignment, method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("bundled", "skewed"), default="skewed")
    parser.add_argument("--checkpoint", type=Path, help="folder of the skewed model (default: a temporary folder)")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5], help="shares of the experts in memory")
    parser.add_argument("--batch", type=int, default=1, help="batch size")
    parser.add_argument("--segments", type=int, default=8)
    parser.add_argument("--steps", type=int, default=48, help="steps per segment")
    parser.add_argument("--read-delay", type=float, default=0.0, help="seconds to delay every read")
    arguments = parser.parse_args()
    logging.basicConfig(level="INFO")
    torch.set_num_threads(1)
    length = WARM_UP + arguments.segments * arguments.steps
    with tempfile.TemporaryDirectory() as temporary:
        folder = BUNDLED
        if arguments.model == "skewed":
            folder = arguments.checkpoint or Path(temporary)
            write_skewed_checkpoint(folder)
        trunk = load_trunk(folder, compute_dtype("auto", read_config(folder), torch.device("cpu")))
        assert isinstance(trunk, Trunk)
        if arguments.model == "bundled":
            streams = sampled_streams(trunk, arguments.batch, length)
        else:
            streams = [topical_tokens(length, seed) for seed in range(arguments.batch)]
        result: dict[str, Any] = {
            "model": arguments.model,
            "batch": arguments.batch,
            "read_delay": arguments.read_delay,
            **routing_skew(trunk, streams[0]),
        }
        if arguments.read_delay:
            delay_reads(arguments.read_delay)
        for share in arguments.shares:
            result[f"{share:.0%}"] = found = measure(trunk, streams, share, arguments.segments, arguments.steps)
            for mode, row in found.items():
                print(f"{share:.0%} {mode:13}", row)
        print(json.dumps(result))


if __name__ == "__main__":
    main()
