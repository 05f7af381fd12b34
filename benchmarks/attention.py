"""Benchmark of decode attention over the KV cache, gathered and paged: ``python -m benchmarks.attention``.

The gathered variant copies the keys and values of each sequence at every layer, and stores those of all heads for
models with latents. The products that expand latents are included. Prints microseconds per layer and sequence (the time
of a step, including its planning, divided by sequences and layers): medians over interleaved rounds. With one thread
this is CPU time, which other processes hardly affect, else wall time. OMP_NUM_THREADS sets the number of threads. The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional as F

from server.kernels.compute_pool import ComputePool
from server.model.attention.kv_cache import KVCache, KVGroup, KVShape
from server.model.attention.mla import LatentAttention, LatentProjection
from server.model.attention.paged_attention import StepAttention
from server.model.step import SequenceChunk
from server.model.transformers_hooks.hooks import AttentionOptions

BLOCK_SIZE = 16
CONTEXTS = (100, 1000, 4000)


@dataclass(frozen=True)
class Model:
    """The shape of a model's attention."""

    num_layers: int
    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    rank: int = 0  # rank of MLA latents; ROTATED dimensions of the keys are rotary

    def shape(self, dtype: torch.dtype) -> KVShape:
        if self.rank:
            return KVShape(1, self.rank + ROTATED, self.rank, dtype, is_latent=True)
        return KVShape(self.kv_heads, self.key_dim, self.value_dim, dtype)


ROTATED = 64
MODELS = {
    "large": Model(16, 16, 4, 64, 64),  # as in benchmarks/large_checkpoint.py
    "bundled": Model(6, 3, 1, 64, 64),
    "latent": Model(4, 16, 16, 192, 128, rank=512),  # some layers of DeepSeek-V2-Lite
}


@dataclass(frozen=True)
class Inputs:
    """Inputs of attention for one layer of a step, in the models' layout: heads within tokens."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    latent: torch.Tensor
    options: AttentionOptions


def make_inputs(model: Model, sequences: int, dtype: torch.dtype) -> Inputs:
    def draw(heads: int, dim: int) -> torch.Tensor:
        return torch.randn((sequences, heads, dim)).to(dtype).transpose(0, 1)

    return Inputs(
        draw(model.heads, model.key_dim),
        draw(model.kv_heads, model.key_dim),
        draw(model.kv_heads, model.value_dim),
        draw(1, model.rank),
        AttentionOptions(model.key_dim**-0.5),
    )


class GatheredAttention:
    """A contiguous cache of tokens, gathered for each sequence."""

    def __init__(self, model: Model, num_blocks: int, dtype: torch.dtype):
        size, layers = (num_blocks * BLOCK_SIZE, model.kv_heads), range(model.num_layers)
        self._keys = [torch.zeros((*size, model.key_dim), dtype=dtype) for _ in layers]
        self._values = [torch.zeros((*size, model.value_dim), dtype=dtype) for _ in layers]
        self._projection = make_projection(model, dtype) if model.rank else None

    def step(self, chunks: Sequence[SequenceChunk], inputs: Inputs) -> None:
        slots = []
        for chunk in chunks:
            positions = torch.arange(chunk.num_cached + 1)
            blocks = torch.tensor(chunk.block_tables[0])
            slots.append(blocks[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE)
        new = torch.cat([of_sequence[-1:] for of_sequence in slots])
        for keys, values in zip(self._keys, self._values, strict=True):
            if self._projection is not None:
                self._projection.expand(inputs.latent)
            keys[new] = inputs.key.transpose(0, 1)
            values[new] = inputs.value.transpose(0, 1)
            outputs = []
            for query, of_sequence in zip(inputs.query.split(1, 1), slots, strict=True):
                output = F.scaled_dot_product_attention(
                    query[None],
                    keys[of_sequence].transpose(0, 1)[None],
                    values[of_sequence].transpose(0, 1)[None],
                    scale=inputs.options.scaling,
                    enable_gqa=len(inputs.query) != len(inputs.key),
                )
                outputs.append(output[0].transpose(0, 1))
            torch.cat(outputs)


class PagedAttention:
    """The attention of the server, over contiguous runs of blocks."""

    def __init__(self, model: Model, num_blocks: int, dtype: torch.dtype):
        self._layers = range(model.num_layers)
        shapes = dict.fromkeys(self._layers, model.shape(dtype))
        self._cache = KVCache([KVGroup(None, shapes)], [num_blocks], BLOCK_SIZE)
        self._projection = make_projection(model, dtype) if model.rank else None
        if self._projection is not None:
            self._projection.split()

    def step(self, chunks: Sequence[SequenceChunk], inputs: Inputs) -> None:
        step = LatentAttention(StepAttention(chunks, self._cache, ComputePool(1)))
        for layer in self._layers:
            if self._projection is not None:
                self._projection.layer = layer
                step.expand(self._projection, inputs.latent)
            step.attend(layer, inputs.query, inputs.key, inputs.value, inputs.options)


def make_chunks(sequences: int, context: int, runs: int) -> list[SequenceChunk]:
    """Return decodes whose blocks form ``runs`` contiguous runs, as far apart as possible."""
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


def make_projection(model: Model, dtype: torch.dtype) -> LatentProjection:
    nope_dim = model.key_dim - ROTATED
    linear = torch.nn.Linear(model.rank, model.heads * (nope_dim + model.value_dim), bias=False, dtype=dtype)
    return LatentProjection(
        SimpleNamespace(
            layer_idx=0,
            kv_lora_rank=model.rank,
            qk_nope_head_dim=nope_dim,
            v_head_dim=model.value_dim,
            kv_b_proj=linear,
        )
    )


def measure(model: Model, dtype: torch.dtype, sequences: int, context: int, runs: int, rounds: int) -> dict[str, float]:
    num_blocks = (-(-context // BLOCK_SIZE) + runs) * sequences
    variants = {"gather": GatheredAttention(model, num_blocks, dtype), "runs": PagedAttention(model, num_blocks, dtype)}
    chunks, inputs = make_chunks(sequences, context, runs), make_inputs(model, sequences, dtype)
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in variants}
    for round_number in range(rounds + 1):
        for name, variant in variants.items():
            started = clock()
            variant.step(chunks, inputs)
            if round_number:
                times[name].append(clock() - started)
    calls = sequences * model.num_layers
    return {name: round(statistics.median(taken) / calls * 1e6, 1) for name, taken in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--runs", type=int, default=1, help="number of contiguous runs of each sequence's blocks")
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
