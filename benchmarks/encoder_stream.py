"""Benchmark of an encoder whose every pass uses every expert: reading them in order, and all of them in memory.

It writes a random Soft MoE encoder. Passes from disk alternate with raw direct reads of the same file, and passes
with all experts in memory alternate with passes that lease nothing, so that a busy machine slows both. Those in memory
are timed by the processor seconds of one thread. The last line is one JSON object.

    python -m benchmarks.encoder_stream --folder DIR     # a folder on the disk to measure; writes 0.6 GiB
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from expert_store import ExpertStore
from expert_store.lease import ReadyExperts
from expert_store.policies import STREAM
from server.kernels.backend import SortedRows
from server.kernels.compute_pool import ComputePool
from server.kernels.native.available import choose_level
from server.kernels.native.library import Kernels
from server.model.attention.kv_cache import KVCache
from server.model.encoders import encoder_trunk
from server.model.experts.expert_layer import ExpertLayer
from server.model.experts.sorted_choices import sort_choices
from server.model.experts.strategies.strategy import ExpertStrategy
from server.model.greenroom_moe import GreenroomMoeConfig, GreenroomMoeForSequenceClassification
from server.model.step import SequenceChunk
from server.model.trunk_loader import load_trunk

LAYERS, EXPERTS, HIDDEN, INTERMEDIATE, VOCABULARY = 6, 32, 512, 1024, 1000
SEQUENCES, TOKENS = 4, 64
READERS, PIECE = 6, 3 << 20
THREADS = 1  # whose processor seconds do not count others
WARM = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--folder", type=Path, help="on the disk to measure (default: the system's for temporary files)"
    )
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    torch.set_num_threads(1)  # the pool has the others
    with tempfile.TemporaryDirectory(dir=asked.folder) as scratch:
        folder = Path(scratch)
        write_model(folder)
        pool = ComputePool(THREADS, Kernels(THREADS, choose_level("auto")))
        trunk = load_trunk(folder, torch.bfloat16, pool=pool)
        assert isinstance(trunk, encoder_trunk.EncoderTrunk)
        result = measure(trunk, folder / "model.safetensors", asked.rounds)
    print(json.dumps({"benchmark": "encoder_stream", **result}))


def write_model(folder: Path) -> None:
    torch.manual_seed(0)
    config = GreenroomMoeConfig(
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_local_experts=EXPERTS,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=VOCABULARY,
        router_type="soft",
        num_labels=4,
        pad_token_id=None,
    )
    GreenroomMoeForSequenceClassification(config).to(torch.bfloat16).save_pretrained(folder)


def measure(trunk: encoder_trunk.EncoderTrunk, file: Path, rounds: int) -> dict[str, Any]:
    """Measure both ratios, medians of rounds."""
    total = trunk.catalog.total_bytes
    chunks = [SequenceChunk([*range(TOKENS)], 0, [], 0) for _ in range(SEQUENCES)]

    def run(store: ExpertStore) -> None:
        trunk.forward(chunks, KVCache((), (), 16), store)

    small, whole = (ExpertStore(trunk.catalog, nbytes, policy=STREAM) for nbytes in (total // LAYERS, total))
    with ExitStack() as stack:
        stack.callback(whole.close)
        stack.callback(small.close)
        speeds: list[tuple[float, float]] = []
        shares: list[float] = []
        for _ in range(rounds + WARM):
            before = small.statistics().loaded_bytes
            seconds = timed(lambda: run(small))
            read = small.statistics().loaded_bytes - before
            shares.append(read / total)
            speeds.append((read / seconds, file.stat().st_size / timed(lambda: read_directly(file))))
        speeds = speeds[WARM:]
        for _ in range(WARM):
            run(whole)
        held = held_experts(trunk, whole, stack)
        times = [
            (
                timed(lambda: run(whole), time.thread_time),
                timed(lambda: with_held(held, lambda: run(whole)), time.thread_time),
            )
            for _ in range(4 * rounds)
        ]
    leased, unleased = (statistics.median(each) for each in zip(*times, strict=True))
    streamed, direct = (statistics.median(each) for each in zip(*speeds, strict=True))
    return {
        "expert_bytes": total,
        "share_in_memory": round(1 / LAYERS, 3),
        "share_read_by_a_pass": round(statistics.median(shares), 3),
        "prefetches_wasted": small.statistics().prefetches["wasted"],
        "stream_gb_per_second": round(streamed / 1e9, 3),
        "direct_gb_per_second": round(direct / 1e9, 3),
        "stream_over_direct": round(statistics.median(a / b for a, b in speeds), 3),
        "resident_pass_ms": round(1000 * leased, 2),
        "unleased_pass_ms": round(1000 * unleased, 2),
        "resident_over_unleased_speed": round(unleased / leased, 3),
    }


def timed(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    started = clock()
    work()
    return clock() - started


def read_directly(path: Path) -> None:
    """Read a file past the page cache, in pieces of the size of an expert, by as many threads as the store has."""
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    size = os.fstat(file).st_size

    def read(first: int) -> None:
        with mmap.mmap(-1, PIECE) as buffer:
            for offset in range(first * PIECE, size, READERS * PIECE):
                os.preadv(file, [buffer], offset)

    try:
        with ThreadPoolExecutor(READERS) as readers:
            list(readers.map(read, range(READERS)))
    finally:
        os.close(file)


Held = Mapping[int, ReadyExperts]


def held_experts(trunk: encoder_trunk.EncoderTrunk, store: ExpertStore, stack: ExitStack) -> Held:
    """Lease all experts of each layer for good."""
    held = {}
    for layer in trunk._layers.values():  # noqa: SLF001
        lease = stack.enter_context(store.lease(dict.fromkeys(layer.keys, 1)))
        held[layer.number] = next(lease.batches())
    return held


def with_held(held: Held, work: Callable[[], None]) -> None:
    """Run a pass whose experts are leased already."""

    class HeldExperts(ExpertStrategy):
        """Experts that no step leases."""

        def run_layer(
            self,
            layer: ExpertLayer,
            hidden_states: torch.Tensor,
            top_k_index: torch.Tensor,
            top_k_weights: torch.Tensor,
        ) -> torch.Tensor:
            order, spans = sort_choices(top_k_index.cpu().numpy(), layer.keys)
            rows = SortedRows(hidden_states, top_k_weights, order, spans, None)
            return layer.backend.run(rows, once(held[layer.number]), lambda: None)

    original = encoder_trunk.LeasedExperts  # type: ignore[attr-defined]
    encoder_trunk.LeasedExperts = HeldExperts  # type: ignore[assignment,attr-defined]
    try:
        work()
    finally:
        encoder_trunk.LeasedExperts = original  # type: ignore[attr-defined]


def once(ready: ReadyExperts) -> Iterator[ReadyExperts]:
    yield ready


if __name__ == "__main__":
    main()
