"""RmsNorm: the RMS norm of rows on a CUDA device, in one launch."""

from __future__ import annotations

import torch
import triton

from server.kernels.triton import norms as kernels

MOST_NUMBERS = 1 << 14  # of a row, which one program holds in registers
WIDE, WARPS = 2048, (4, 16)  # numbers from which a program has more warps


class RmsNorm:
    """An RMS norm.

    Args:
        weight: float32 ``(size,)``, by which normed numbers are multiplied.
    """

    def __init__(self, weight: torch.Tensor, epsilon: float):
        self._weight, self._epsilon = weight, epsilon
        self._options = options_of(len(weight))

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the normed rows ``(..., size)``, in their dtype."""
        size = len(self._weight)
        rows = hidden_states.reshape(-1, size)
        output = torch.empty_like(rows, memory_format=torch.contiguous_format)
        if len(rows):
            kernels.norm_rows[len(rows),](rows.contiguous(), self._weight, output, size, self._epsilon, **self._options)
        return output.view(hidden_states.shape)


def options_of(size: int) -> dict[str, int]:
    """Return the constants of the kernel for rows of so many numbers."""
    return {"BLOCK": triton.next_power_of_2(size), "num_warps": WARPS[size > WIDE]}
