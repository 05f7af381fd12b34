"""LatentRule: norm and rotation of a latent attention, which one launch applies and writes to the cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from server.kernels.triton.decode_attention import PagedKeys
from server.model.blocks.latent_attention import triton_kernels as kernels

MOST_RANK = 1 << 12  # numbers of a latent, which one program holds in registers


@dataclass(frozen=True)
class LatentRule:
    """The norm of latents, and the rotation of queries and keys.

    Args:
        rotation: ``NOT_ROTATED``, ``HALVES``, ``PAIRS`` or ``HALVES_OF_PAIRS`` of the kernels.
        step: numbers of the tables of cosines and sines from one angle to the next.
        nope_dim, rope_dim: numbers of a query that are not rotated, and that may be.
        norm: float32 ``(rank,)`` weights of the RMS norm.
    """

    rotation: int
    step: int
    nope_dim: int
    rope_dim: int
    norm: torch.Tensor
    epsilon: float


@dataclass(frozen=True)
class ProjectedLatents:
    """The projections of a step's tokens, whose rows are contiguous.

    Args:
        query: ``(tokens, heads * (nope_dim + rope_dim))``.
        latent: ``(tokens, rank + rope_dim)``.
        cosines, sines: of the tokens' positions, ``(tokens, numbers)``.
    """

    query: torch.Tensor
    latent: torch.Tensor
    cosines: torch.Tensor
    sines: torch.Tensor
    rule: LatentRule

    @property
    def by_head(self) -> torch.Tensor:
        """Queries ``(heads, tokens, nope_dim + rope_dim)``."""
        dim = self.rule.nope_dim + self.rule.rope_dim
        return self.query.view(len(self.query), -1, dim).transpose(0, 1)

    def prepare(
        self, slots: torch.Tensor, cache: PagedKeys, to_keys: torch.Tensor | None, *, keeps_rows: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``attention.projected.ProjectedLatents``."""
        rule, queries, rank = self.rule, self.by_head, len(self.rule.norm)
        num_heads, count, width = len(queries), len(self.query), rank + rule.rope_dim
        absorbed = queries.new_empty(num_heads, count, width)
        rows = queries.new_empty(1, count if keeps_rows else 0, width)
        if to_keys is not None:
            torch.bmm(queries[..., : rule.nope_dim], to_keys, out=absorbed[..., :rank])
        kernels.prepare_latents[count, num_heads + 1](
            slots, self.query, self.latent, rule.norm, self.cosines, self.sines, absorbed,
            rows if keeps_rows else absorbed, cache.keys, self.query.stride(0), self.latent.stride(0),
            self.cosines.stride(0), absorbed.stride(0), absorbed.stride(1), cache.keys.stride(1), num_heads,
            rule.nope_dim, rank, rule.rope_dim, rule.rope_dim // 2, rule.epsilon, ROTATION=rule.rotation,
            STEP=rule.step, KEEPS_ROWS=keeps_rows, **options_of(rank, rule.rope_dim),
        )  # fmt: skip
        return absorbed, rows


def options_of(rank: int, rope_dim: int) -> dict[str, int]:
    """Return the constants of the kernel for latents and rotated parts of so many numbers."""
    return {"BLOCK_R": triton.next_power_of_2(rank), "BLOCK_D": triton.next_power_of_2(rope_dim), "num_warps": 4}
