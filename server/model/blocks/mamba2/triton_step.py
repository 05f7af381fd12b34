"""The step of Mamba-2 on a CUDA device, between its projections, in two launches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from server.model.blocks.mamba2 import triton_kernels as kernels
from server.model.blocks.recurrent.triton_kernels import norm_gated_rows
from server.model.blocks.recurrent.triton_step import Convolution, Rows, norm_options


@dataclass(frozen=True)
class Mamba2:
    """Mamba-2.

    Args:
        groups: of heads that share B and C.
        decay, step_bias, direct: float32 ``(heads,)``.
        norm: float32 ``(heads * head_dim,)``.
        norm_size: numbers that are normed together.
        least_step, longest_step: bounds of time steps.
    """

    convolution: Convolution
    heads: int
    head_dim: int
    groups: int
    state_size: int
    decay: torch.Tensor
    step_bias: torch.Tensor
    direct: torch.Tensor
    norm: torch.Tensor
    norm_size: int
    epsilon: float
    least_step: float
    longest_step: float

    def step(self, projected: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Return the gated and normed results for single tokens, ``(tokens, heads * head_dim)``."""
        weight, bias = self.convolution.weight, self.convolution.bias
        count, inner = len(projected), self.heads * self.head_dim
        found, y = (projected.new_empty(count, inner, dtype=dtype) for dtype in (torch.float32, projected.dtype))
        kernels.step_mamba2[count, self.heads](
            projected, rows.conv, weight, weight if bias is None else bias, rows.state, self.decay, self.step_bias,
            self.direct, rows.sources, rows.targets, found, projected.stride(0), rows.conv.stride(0),
            rows.state.stride(0), self.heads, self.heads // self.groups, self.head_dim, self.state_size, self.groups,
            self.least_step, self.longest_step, HAS_BIAS=bias is not None,
            **self.convolution.options(rows.conv.shape[-1]), **mamba2_options(self.head_dim, self.state_size),
        )  # fmt: skip
        norm_gated_rows[count, inner // self.norm_size](
            found, projected, self.norm, y, projected.stride(0), 0, self.norm_size, self.norm_size, 1, self.norm_size,
            self.epsilon, GATES_FIRST=True, **norm_options(self.norm_size),
        )  # fmt: skip
        return y


def mamba2_options(head_dim: int, state_size: int) -> dict[str, int]:
    """Return the constants of the kernel for heads of so many numbers, each with so many in its state."""
    return {"BLOCK_D": triton.next_power_of_2(head_dim), "BLOCK_S": triton.next_power_of_2(state_size), "num_warps": 8}
