"""The KV cache takes memory as its blocks are written, and gives it back."""

from __future__ import annotations

import mmap

import pytest
import torch

from server.memory.machine import own_bytes
from server.model.attention.kv_cache import KVCache, KVGroup, KVShape, extent_blocks

BLOCK_SIZE = 16
SHAPE = KVShape(4, 64, 64, torch.bfloat16)
GROUP = KVGroup(None, dict.fromkeys(range(4), SHAPE))
EXTENT = extent_blocks(GROUP, BLOCK_SIZE)


def write(cache: KVCache, first_block: int, num_blocks: int, value: float) -> None:
    slots = torch.arange(first_block * BLOCK_SIZE, (first_block + num_blocks) * BLOCK_SIZE)
    rows = torch.full((SHAPE.kv_heads, len(slots), SHAPE.dim), value, dtype=SHAPE.dtype)
    for layer in cache.layers.values():
        layer.write(slots, rows, rows)


@pytest.mark.parametrize("dim", [6, 40, 64, 96, 128, 192, 576])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_an_extent_fills_whole_pages_of_each_head(dim: int, dtype: torch.dtype) -> None:
    group = KVGroup(None, {0: KVShape(2, dim, dim, dtype)})
    count = extent_blocks(group, BLOCK_SIZE)
    assert count * BLOCK_SIZE * dim * dtype.itemsize % mmap.PAGESIZE == 0
    assert count <= 128


def test_memory_comes_with_the_blocks_that_are_written_and_goes_with_their_extents() -> None:
    cache = KVCache([GROUP], [64 * EXTENT], BLOCK_SIZE)
    extent_bytes = EXTENT * BLOCK_SIZE * GROUP.token_bytes
    at_first = own_bytes()
    write(cache, 0, 16 * EXTENT, 1.0)
    written = own_bytes()
    assert written - at_first > 15 * extent_bytes
    cache.release(0, 0, 16 * EXTENT)
    assert written - own_bytes() > 15 * extent_bytes


def test_what_is_released_is_zero_and_what_is_beside_it_stays_where_it_is() -> None:
    cache = KVCache([GROUP], [3 * EXTENT], BLOCK_SIZE)
    addresses = [layer.keys.data_ptr() for layer in cache.layers.values()]
    write(cache, 0, 3 * EXTENT, 1.0)
    cache.release(0, EXTENT, EXTENT)
    rows = EXTENT * BLOCK_SIZE
    for layer in cache.layers.values():
        for tensor in (layer.keys, layer.values):
            assert not tensor[:, :, rows : 2 * rows].any()
            assert (tensor[:, :, :rows] == 1).all()
            assert (tensor[:, :, 2 * rows : 3 * rows] == 1).all()
    assert addresses == [layer.keys.data_ptr() for layer in cache.layers.values()]
