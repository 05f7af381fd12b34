"""Attention of single new tokens by Triton is what the spans of the cache give by torch."""

from __future__ import annotations

import mmap
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from expert_store.arena import RESERVE
from server.kernels.compute_pool import ComputePool
from server.kernels.triton import available
from server.kernels.triton.available import has_driver
from server.kernels.triton.decode_attention import MERGED, PARTITION, DecodeRow, PagedKeys, PagedStep
from server.model.attention.kv_cache import KVCache, KVShape, group_layers
from server.model.attention.paged_attention import StepAttention
from server.model.hooks import AttentionOptions
from server.model.step import SequenceChunk

pytestmark = pytest.mark.slow

DEVICE = torch.device("cuda" if has_driver() else "cpu")
BLOCK_SIZE = 4
LENGTHS = (61, 1, PARTITION + 2, PARTITION)  # tokens of each sequence, the new one included
HEADS = 6
SHAPES = {
    "grouped": KVShape(2, 16, 16, torch.float32),
    "one key head": KVShape(1, 16, 16, torch.float32),
    "wide keys": KVShape(3, 24, 16, torch.float32),
    "wide values": KVShape(6, 8, 20, torch.float32),
    "latent": KVShape(1, 24, 16, torch.float32, is_latent=True),
    "latent that is no power of two": KVShape(1, 30, 20, torch.float32, is_latent=True),
}
OPTIONS = {
    "all keys": AttentionOptions(0.3),
    "a window": AttentionOptions(0.3, PARTITION - 3),
    "a short window": AttentionOptions(0.3, 5),
    "chunks": AttentionOptions(0.3, 50, is_chunked=True),
    "sinks": AttentionOptions(0.3, sinks=torch.linspace(-2, 3, HEADS)),
    "a soft cap": AttentionOptions(0.3, softcap=1.5),
}


@contextmanager
def kernels() -> Iterator[None]:
    """Let Triton's kernels run, by its interpreter where there is no GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(available, "missing", lambda _: None)
        yield


def draw(shape: KVShape, num_tokens: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return queries, keys and values of some tokens, ``(heads, tokens, dim)``."""
    rows = []
    for size in ((HEADS, shape.key_dim), (shape.kv_heads, shape.key_dim), (shape.kv_heads, shape.value_dim)):
        drawn = torch.randn((num_tokens, *size), generator=torch.Generator().manual_seed(seed + len(rows)))
        rows.append(drawn.to(DEVICE, shape.dtype).transpose(0, 1))
    return rows[0], rows[1], rows[1] if shape.is_latent else rows[2]


def attend(
    shape: KVShape, options: AttentionOptions, news: list[int], *, lengths: tuple[int, ...] = LENGTHS, with_triton: bool
) -> torch.Tensor:
    """Fill a cache, then run a step of the last ``news`` tokens of each sequence."""
    window, is_chunked = options.sliding_window, options.is_chunked
    groups = group_layers({5: shape}, {5: window}, [5] if is_chunked else [])
    counts = [-(-length // BLOCK_SIZE) for length in lengths]
    blocks = random.Random(7).sample(range(sum(counts)), sum(counts))
    tables = [[blocks.pop() for _ in range(count)] for count in counts]
    cache = KVCache(groups, [sum(counts)], BLOCK_SIZE, DEVICE)
    for seed, (length, new, table) in enumerate(zip(lengths, news, tables, strict=True)):
        if length > new:
            before = SequenceChunk([0] * (length - new), 0, [table])
            StepAttention([before], cache, ComputePool(1)).attend(5, *draw(shape, length - new, 3 + seed), options)
    chunks = [
        SequenceChunk([0] * new, length - new, [table])
        for length, new, table in zip(lengths, news, tables, strict=True)
    ]
    pool = ComputePool(1, triton_device=DEVICE if with_triton else None)
    with kernels():
        return StepAttention(chunks, cache, pool).attend(5, *draw(shape, sum(news)), options).cpu()


def farthest(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).abs().max())


@pytest.mark.parametrize("shape", SHAPES)
def test_decodes_see_the_keys_of_their_sequences(shape: str) -> None:
    step = SHAPES[shape], OPTIONS["all keys"], [1] * len(LENGTHS)
    assert farthest(attend(*step, with_triton=True), attend(*step, with_triton=False)) < 1e-5


@pytest.mark.parametrize("options", [name for name in OPTIONS if name != "all keys"])
def test_windows_sinks_and_soft_caps_hold(options: str) -> None:
    step = SHAPES["grouped"], OPTIONS[options], [1] * len(LENGTHS)
    assert farthest(attend(*step, with_triton=True), attend(*step, with_triton=False)) < 1e-5


def test_prompts_may_be_in_the_same_step() -> None:
    step = SHAPES["grouped"], OPTIONS["a window"], [7, 1, 1, 100]
    assert farthest(attend(*step, with_triton=True), attend(*step, with_triton=False)) < 1e-5


def test_half_precision_rounds_weights_and_results_alone() -> None:
    narrow = replace(SHAPES["grouped"], dtype=torch.float16)
    found = attend(narrow, OPTIONS["sinks"], [1] * len(LENGTHS), with_triton=True)
    assert found.dtype == torch.float16
    assert farthest(found, attend(SHAPES["grouped"], OPTIONS["sinks"], [1] * len(LENGTHS), with_triton=False)) < 3e-3


def test_company_changes_no_bit() -> None:
    shape, options = SHAPES["one key head"], OPTIONS["sinks"]
    together = attend(shape, options, [1, 1], lengths=(30, PARTITION + 5), with_triton=True)
    alone = attend(shape, options, [1], lengths=(30,), with_triton=True)
    assert torch.equal(together[0], alone[0])


def test_more_partitions_than_are_merged_at_once() -> None:
    lengths = ((MERGED + 1) * PARTITION + 3,)
    step = SHAPES["one key head"], OPTIONS["sinks"], [1]
    found, expected = (attend(*step, lengths=lengths, with_triton=is_triton) for is_triton in (True, False))
    assert farthest(found, expected) < 1e-5


@pytest.mark.skipif(DEVICE.type != "cpu", reason="a GPU has no memory that is only reserved")
def test_slots_and_heads_behind_32_bits_are_read() -> None:
    slots, dim = 1 << 28, 16
    memory = mmap.mmap(-1, 4 * 2 * slots * dim, flags=RESERVE)
    keys = torch.from_numpy(np.frombuffer(memory, np.float32).reshape(2, slots, dim))
    near = torch.zeros((2, 2 * BLOCK_SIZE, dim))
    query, key, value = draw(KVShape(2, dim, dim, torch.float32), 1)
    results = []
    for cache, block in ((near, 1), (keys, slots // BLOCK_SIZE - 1)):
        step = PagedStep([block * BLOCK_SIZE], [DecodeRow(0, 0, 2, [block])], BLOCK_SIZE, DEVICE)
        paged = PagedKeys(cache, cache, dim, dim, is_latent=False)
        step.write(key, value, paged)
        results.append(torch.empty((1, HEADS, dim)))
        step.attend(query, paged, results[-1], scaling=0.3, softcap=None, sinks=None)
    assert float(results[0].abs().max()) > 0
    assert torch.equal(*results)
