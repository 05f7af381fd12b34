"""HeadRule: norms and rotation of an attention's heads, which one launch applies and writes to the cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from server.kernels.triton.decode_attention import PagedKeys
from server.model.blocks.grouped_attention import triton_kernels as kernels


@dataclass(frozen=True)
class HeadRule:
    """The norms of heads, and the rotation of queries and keys.

    Args:
        rotation: ``NOT_ROTATED``, ``HALVES`` or ``PAIRS`` of the kernels.
        step: numbers of the tables of cosines and sines from one angle to the next.
        rotated_dim: numbers of a head that are rotated, the first ones.
        query_norm, key_norm: float32 ``(key_dim,)`` weights of RMS norms; None for both if there are none.
        epsilon: of all norms.
        value_norm: float32 ``(value_dim,)`` weights of the RMS norm of values, if they have one.
    """

    rotation: int
    step: int
    rotated_dim: int
    query_norm: torch.Tensor | None = None
    key_norm: torch.Tensor | None = None
    epsilon: float = 0.0
    value_norm: torch.Tensor | None = None


@dataclass(frozen=True)
class ProjectedHeads:
    """The projections of a step's tokens, whose rows are contiguous.

    Args:
        query: ``(tokens, heads * key_dim)``.
        key: ``(tokens, kv_heads * key_dim)``.
        value: ``(tokens, kv_heads * value_dim)``.
        cosines, sines: of the tokens' positions, ``(tokens, numbers)``.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    cosines: torch.Tensor
    sines: torch.Tensor
    rule: HeadRule

    def prepare(
        self, slots: torch.Tensor, cache: PagedKeys, *, keeps_keys: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See ``attention.projected.ProjectedHeads``."""
        rule, count, kv_heads = self.rule, len(self.query), len(cache.keys)
        num_heads = self.query.shape[1] // cache.key_dim
        rotated = self.query.new_empty(count, num_heads, cache.key_dim)
        new_keys = self.key.new_empty(count if keeps_keys else 0, kv_heads, cache.key_dim)
        new_values = self.value.view(count, kv_heads, -1)
        if rule.value_norm is not None and keeps_keys:
            new_values = self.value.new_empty(count, kv_heads, cache.value_dim)
        has_norms, value_norm = rule.query_norm is not None, rule.value_norm
        kernels.prepare_heads[count, num_heads + 2 * kv_heads](
            slots, self.query, self.key, self.value, rule.query_norm if has_norms else self.cosines,
            rule.key_norm if has_norms else self.cosines, self.cosines if value_norm is None else value_norm,
            self.cosines, self.sines, rotated, new_keys if keeps_keys else rotated, new_values, cache.keys,
            cache.values, self.query.stride(0), self.key.stride(0), self.value.stride(0), self.cosines.stride(0),
            cache.keys.stride(0), cache.keys.stride(1), num_heads, kv_heads, cache.key_dim, cache.value_dim,
            rule.rotated_dim // 2, rule.epsilon, HAS_NORMS=has_norms, HAS_VALUE_NORM=value_norm is not None,
            ROTATION=rule.rotation, STEP=rule.step, KEEPS_KEYS=keeps_keys, **options_of(cache.key_dim, cache.value_dim),
        )  # fmt: skip
        return rotated.transpose(0, 1), new_keys.transpose(0, 1), new_values.transpose(0, 1)


def options_of(key_dim: int, value_dim: int) -> dict[str, int]:
    """Return the constants of the kernel for heads of so many numbers."""
    return {"BLOCK": triton.next_power_of_2(max(key_dim, value_dim)), "num_warps": 1}
