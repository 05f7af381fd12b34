"""The step of a gated delta net on a CUDA device, between its projections, in two launches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from server.model.blocks.gated_delta_net import triton_kernels as kernels
from server.model.blocks.recurrent.triton_kernels import norm_gated_rows
from server.model.blocks.recurrent.triton_step import Convolution, Rows, norm_options

VALUES = 32  # of a head, of one program


@dataclass(frozen=True)
class GatedDelta:
    """A gated delta net.

    Args:
        key_heads: of queries and keys.
        shared: value heads that share one of them.
        places: where queries, keys and values of the first key head begin in a token's projections, each with the
            distance to those of the next one; and where the scalars for beta and for the decay begin, and their
            distance.
        gates: the same of the gates.
        decay, decay_bias: float32 ``(value_heads,)``.
        norm: float32 ``(value_dim,)``.
    """

    convolution: Convolution
    key_heads: int
    shared: int
    key_dim: int
    value_dim: int
    places: tuple[int, ...]
    gates: tuple[int, int]
    decay: torch.Tensor
    decay_bias: torch.Tensor
    norm: torch.Tensor
    epsilon: float

    def step(self, projected: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Return the normed and gated results for single tokens, ``(tokens, value_heads * value_dim)``."""
        count, heads, options = len(projected), self.key_heads * self.shared, delta_options(self.key_dim)
        size = heads * self.value_dim
        found, y = (projected.new_empty(count, size, dtype=dtype) for dtype in (torch.float32, projected.dtype))
        kernels.step_delta[count, heads, triton.cdiv(self.value_dim, options["BLOCK_V"])](
            projected, rows.conv, self.convolution.weight, rows.state, self.decay, self.decay_bias, rows.sources,
            rows.targets, found, projected.stride(0), rows.conv.stride(0), rows.state.stride(0), *self.places,
            self.key_heads, self.shared, self.key_dim, self.value_dim,
            **self.convolution.options(rows.conv.shape[-1]), **options,
        )  # fmt: skip
        norm_gated_rows[count, heads](
            found, projected, self.norm, y, projected.stride(0), *self.gates, 0, self.shared, self.value_dim,
            self.epsilon, GATES_FIRST=False, **norm_options(self.value_dim),
        )  # fmt: skip
        return y


def delta_options(key_dim: int) -> dict[str, int]:
    """Return the constants of the kernel for keys of so many numbers."""
    return {"BLOCK_D": triton.next_power_of_2(key_dim), "BLOCK_V": VALUES, "num_warps": 4}
