"""Attention of decoding sequences over the KV cache, old way and new: ``python -m benchmarks.attention``.

The old way gathered the keys and values of each sequence at every layer. Microseconds for one layer of one sequence (a
step's time, its planning included, over sequences and layers), in turns, medians over the rounds. With one thread it
is the processor's time, which other processes do not change much, else the clock's. Threads are those of
OMP_NUM_THREADS. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from server.model.attention import StepAttention
from server.model.kv_cache import KVCache, KVGroup, KVShape
from server.model.seam import AttentionOptions
from server.model.step import SequenceChunk

BLOCK_SIZE = 16
CONTEXTS = (100, 1000, 4000)


@dataclass(frozen=True)
class Model:
    """The shape of a model's attention."""

    num_layers: int
    heads: int
    kv_heads: int
    dim: int


MODELS = {"large": Model(16, 16, 4, 64), "bundled": Model(6, 3, 1, 64)}


class Gathering:
    """The old way: a cache of tokens after each other, gathered sequence by sequence."""

    def __init__(self, model: Model, slots: int, dtype: torch.dtype):
        size = (slots, model.kv_heads, model.dim)
        self._keys = [torch.zeros(size, dtype=dtype) for _ in range(model.num_layers)]
        self._values = [torch.zeros(size, dtype=dtype) for _ in range(model.num_layers)]

    def plan(self, chunks: list[SequenceChunk]) -> None:
        self._slots = []
        for chunk in chunks:
            positions = torch.arange(chunk.num_cached + 1)
            blocks = torch.tensor(chunk.block_tables[0])
            self._slots.append(blocks[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE)
        self._new = torch.cat([slots[-1:] for slots in self._slots])

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        self._keys[layer][self._new] = key.transpose(0, 1)
        self._values[layer][self._new] = value.transpose(0, 1)
        outputs = []
        for part, slots in zip(query.split(1, 1), self._slots, strict=True):
            keys, values = self._keys[layer][slots].transpose(0, 1), self._values[layer][slots].transpose(0, 1)
            output = F.scaled_dot_product_attention(
                part[None], keys[None], values[None], scale=options.scaling, enable_gqa=len(query) != len(key)
            )
            outputs.append(output[0].transpose(0, 1))
        return torch.cat(outputs)


def make_chunks(sequences: int, context: int, runs: int) -> list[SequenceChunk]:
    """Decodes whose blocks lie in so many runs, each run as far from the others as can be."""
    blocks = -(-context // BLOCK_SIZE)
    chunks = []
    for sequence in range(sequences):
        lengths = [blocks // runs + (run < blocks % runs) for run in range(runs)]
        table: list[int] = []
        for run, length in enumerate(lengths):
            start = (run * sequences + sequence) * (blocks // runs + 1)
            table.extend(range(start, start + length))
        chunks.append(SequenceChunk([0], context - 1, [table]))
    return chunks


def measure(model: Model, dtype: torch.dtype, sequences: int, context: int, runs: int, rounds: int) -> dict[str, float]:
    num_blocks = (-(-context // BLOCK_SIZE) + runs) * sequences
    shape = KVShape(model.kv_heads, model.dim, model.dim, dtype)
    cache = KVCache([KVGroup(None, dict.fromkeys(range(model.num_layers), shape))], [num_blocks], BLOCK_SIZE)
    gathering = Gathering(model, num_blocks * BLOCK_SIZE, dtype)
    chunks = make_chunks(sequences, context, runs)
    # As models give them: tokens after each other, heads within.
    query = torch.randn((sequences, model.heads, model.dim)).to(dtype).transpose(0, 1)
    key, value = torch.randn((2, sequences, model.kv_heads, model.dim)).to(dtype).transpose(1, 2)
    options = AttentionOptions(model.dim**-0.5)

    def gather() -> None:
        gathering.plan(chunks)
        for layer in range(model.num_layers):
            gathering.attend(layer, query, key, value, options)

    def in_runs() -> None:
        step = StepAttention(chunks, cache)
        for layer in range(model.num_layers):
            step.attend(layer, query, key, value, options)

    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {"gather": [], "runs": []}
    for turn in range(rounds + 1):
        for name, step in (("gather", gather), ("runs", in_runs)):
            started = clock()
            step()
            if turn:
                times[name].append(clock() - started)
    calls = sequences * model.num_layers
    return {name: round(statistics.median(taken) / calls * 1e6, 1) for name, taken in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--runs", type=int, default=1, help="into how many runs each sequence's blocks fall")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    result: dict[str, Any] = {
        "benchmark": "attention",
        "threads": torch.get_num_threads(),
        "sequences": options.sequences,
        "runs": options.runs,
    }
    with torch.inference_mode():
        for name in options.models:
            for dtype in (torch.bfloat16, torch.float32):
                for context in CONTEXTS:
                    figures = measure(MODELS[name], dtype, options.sequences, context, options.runs, options.rounds)
                    result[f"{name}_{str(dtype).removeprefix('torch.')}_{context}"] = figures
                    print(f"{name}, {dtype}, {context} tokens:", figures, flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
