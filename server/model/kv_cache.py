"""The tensors of the KV cache: fixed blocks of tokens, one pair of tensors a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

CPU = torch.device("cpu")


@dataclass(frozen=True)
class KVShape:
    """What one layer keeps of a token."""

    kv_heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype

    @property
    def token_bytes(self) -> int:
        return self.kv_heads * (self.key_dim + self.value_dim) * self.dtype.itemsize


class KVCache:
    """Keys and values of all sequences. Who owns which block is the engine's affair."""

    def __init__(self, shapes: Mapping[int, KVShape], num_blocks: int, block_size: int, device: torch.device = CPU):
        self.num_blocks, self.block_size, self._device = num_blocks, block_size, device
        slots = num_blocks * block_size
        self._keys = {
            layer: torch.zeros((slots, shape.kv_heads, shape.key_dim), dtype=shape.dtype, device=device)
            for layer, shape in shapes.items()
        }
        self._values = {
            layer: torch.zeros((slots, shape.kv_heads, shape.value_dim), dtype=shape.dtype, device=device)
            for layer, shape in shapes.items()
        }

    def slots(self, block_table: Sequence[int], first: int, last: int) -> torch.Tensor:
        """Where the tokens ``first`` to ``last`` (exclusive) of a sequence lie, ``(last - first,)``."""
        positions = torch.arange(first, last, device=self._device)
        blocks = torch.tensor(block_table, device=self._device)
        return blocks[positions // self.block_size] * self.block_size + positions % self.block_size

    def write(self, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Keep ``key (tokens, kv_heads, key_dim)`` and ``value (tokens, kv_heads, value_dim)``."""
        self._keys[layer][slots] = key
        self._values[layer][slots] = value

    def read(self, layer: int, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values at some slots, each ``(kv_heads, tokens, dim)``."""
        return self._keys[layer][slots].transpose(0, 1), self._values[layer][slots].transpose(0, 1)
