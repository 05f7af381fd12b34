"""PagedStep: cache writes of a step, and attention of its single new tokens, in one launch a layer or two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton

from server.kernels.triton import attention as kernels
from server.kernels.upload import upload, upload_into

PARTITION = 128  # keys that a program reads; calculated: 128 programs for one sequence of 4,096 tokens and 4 key heads
MERGED = 16  # partitions that are merged at once
# Keys of a tile and warps of a program, by the most numbers of a key or value; for 16 bits, and for float32.
KEYS = ((64, 64, 4), (256, 32, 4), (1 << 30, 16, 8))
WIDE_KEYS = ((192, 32, 8), (1 << 30, 16, 8))
LEAST = 16  # numbers of each side of a product


@dataclass(frozen=True)
class DecodeRow:
    """A single new token of a sequence.

    Args:
        token: its number in the step.
        first, end: the keys that it sees, its own included; ``end`` is exclusive.
        table: the sequence's blocks; those before the first key are not read.
    """

    token: int
    first: int
    end: int
    table: Sequence[int]


@dataclass(frozen=True)
class PagedKeys:
    """A layer's keys and values in the cache, ``(kv_heads, slots, dim)``, of which some numbers are used.

    Args:
        values: of the same strides; the first ``value_dim`` numbers of the keys for a latent.
    """

    keys: torch.Tensor
    values: torch.Tensor
    key_dim: int
    value_dim: int
    is_latent: bool


def most_partitions(rows: Sequence[DecodeRow]) -> int:
    """Return the partitions of the row that has most."""
    return max(((row.end - 1) // PARTITION - row.first // PARTITION + 1 for row in rows), default=0)


class PagedStep:
    """A step's tokens and one group of layers' blocks.

    Args:
        slots: of the cache for the keys of all tokens of the step.
        rows: tokens that attend by ``attend``; others may do so otherwise.
        block_size: tokens of a block.
        num_partitions: room for the partitions of a row, which ``update`` may need; by default as many as there are.
    """

    def __init__(
        self,
        slots: Sequence[int],
        rows: Sequence[DecodeRow],
        block_size: int,
        device: torch.device,
        num_partitions: int | None = None,
    ):
        self._block_size, self._num_rows = block_size, len(rows)
        self._num_partitions = num_partitions or most_partitions(rows)
        self._width = self._num_partitions * -(-PARTITION // block_size) + 1
        if num_partitions is None:
            self._width = max((end - first for first, end in map(self._span, rows)), default=0)
        self._numbers = upload(self._pack(slots, rows), device)
        first_table = len(slots) + 3 * len(rows)
        self.slots, self._rows = self._numbers[: len(slots)], self._numbers[len(slots) : first_table]
        self._tables = self._numbers[first_table:]

    def update(self, slots: Sequence[int], rows: Sequence[DecodeRow]) -> None:
        """Take another step, of as many tokens and rows, at the same place in the device's memory."""
        upload_into(self._pack(slots, rows), self._numbers)

    def _pack(self, slots: Sequence[int], rows: Sequence[DecodeRow]) -> npt.NDArray[np.int32]:
        numbers = np.zeros((len(rows), 3), np.int32)
        tables = np.zeros((len(rows), self._width), np.int32)
        for number, row in enumerate(rows):
            first, end = self._span(row)
            numbers[number] = row.token, row.first, row.end
            tables[number, : end - first] = row.table[first:end]
        return np.concatenate([np.asarray(slots, np.int32), numbers.ravel(), tables.ravel()])

    def _span(self, row: DecodeRow) -> tuple[int, int]:
        """Return the first and the end of a row's blocks."""
        return row.first // self._block_size, -(-row.end // self._block_size)

    def write(self, key: torch.Tensor, value: torch.Tensor, cache: PagedKeys) -> None:
        """Write the keys and values of all tokens of the step to the cache, ``(kv_heads, tokens, dim)`` each."""
        key, value = _with_rows(key), _with_rows(value)
        kernels.write_tokens[len(self.slots), len(key)](
            self.slots, key, value, cache.keys, cache.values, key.stride(0), key.stride(1), value.stride(0),
            value.stride(1), cache.keys.stride(0), cache.keys.stride(1), cache.key_dim, cache.value_dim,
            IS_LATENT=cache.is_latent, BLOCK=triton.next_power_of_2(max(cache.key_dim, cache.value_dim)),
        )  # fmt: skip

    def attend(
        self,
        query: torch.Tensor,
        cache: PagedKeys,
        output: torch.Tensor,
        *,
        scaling: float,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> None:
        """Attend to the keys that each row sees, which are in the cache already.

        Args:
            query: ``(heads, tokens, key_dim)`` of the step.
            output: contiguous ``(tokens, heads, value_dim)``; the rows' tokens are written.
            sinks: ``(heads,)`` a score of each head that has no value.
        """
        query, kv_heads, heads = _with_rows(query), len(cache.keys), len(query)
        group, is_split = heads // kv_heads, self._num_partitions > 1
        tiles = Tiles.of(cache.key_dim, cache.value_dim, query.dtype)
        parts = extremes = output
        sinks_or_any = output if sinks is None else sinks
        if is_split:
            size = self._num_rows, heads, self._num_partitions
            parts = query.new_empty(*size, cache.value_dim, dtype=torch.float32)
            extremes = query.new_empty(*size, 2, dtype=torch.float32)
        grid = (self._num_rows, kv_heads * triton.cdiv(group, tiles.heads), self._num_partitions)
        kernels.attend_partition[grid](
            self._rows, self._tables, query, cache.keys, cache.values, sinks_or_any, output, parts,
            extremes, self._width, self._num_partitions, query.stride(0), query.stride(1), cache.keys.stride(0),
            cache.keys.stride(1), heads, group, cache.key_dim, cache.value_dim, scaling, softcap or 1.0,
            IS_LATENT=cache.is_latent, HAS_SINKS=sinks is not None, HAS_SOFTCAP=softcap is not None,
            IS_SPLIT=is_split, BLOCK=self._block_size, PARTITION=PARTITION, **tiles.options,
        )  # fmt: skip
        if is_split:
            kernels.merge_partitions[self._num_rows, heads](
                self._rows, parts, extremes, sinks_or_any, output, self._num_partitions, heads,
                cache.value_dim, HAS_SINKS=sinks is not None, PARTITION=PARTITION, BLOCK_V=tiles.options["BLOCK_V"],
                BLOCK_P=MERGED,
            )  # fmt: skip


@dataclass(frozen=True)
class Tiles:
    """Sizes of the kernel's tiles, powers of two. None was ever timed: they are the largest that spill no register."""

    heads: int
    options: dict[str, Any]

    @classmethod
    def of(cls, key_dim: int, value_dim: int, dtype: torch.dtype) -> Tiles:
        whole = max(LEAST, 1 << (key_dim.bit_length() - 1))
        rest, widest = key_dim - whole, max(key_dim, value_dim)
        sizes = WIDE_KEYS if dtype == torch.float32 else KEYS
        keys, num_warps = next(found for most, *found in sizes if widest <= most)
        return cls(
            LEAST,
            {
                "BLOCK_H": LEAST,
                "BLOCK_D": whole,
                "REST_D": max(LEAST, triton.next_power_of_2(rest)) if rest > 0 else 0,
                "BLOCK_V": max(LEAST, triton.next_power_of_2(value_dim)),
                "BLOCK_N": keys,
                "num_warps": num_warps,
            },
        )


def _with_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor whose rows are contiguous."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
