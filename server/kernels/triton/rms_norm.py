"""RmsNorm: the RMS norm of rows on a CUDA device, in one launch."""

from __future__ import annotations

import torch
import triton

from server.kernels.residual_stream import ResidualStream
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
        """Return the normed rows ``(..., size)``, in their dtype; a sum that is still to come is added here."""
        if isinstance(hidden_states, ResidualStream):
            return hidden_states.normed(self, self.add_and_norm)
        size = len(self._weight)
        rows = hidden_states.reshape(-1, size)
        output = torch.empty_like(rows, memory_format=torch.contiguous_format)
        if len(rows):
            rows = rows if rows.stride(-1) == 1 else rows.contiguous()
            kernels.norm_rows[len(rows),](
                rows, self._weight, output, rows.stride(0), size, self._epsilon, **self._options
            )
        return output.view(hidden_states.shape)

    def add_and_norm(self, hidden_states: torch.Tensor, added: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum of contiguous rows, and the normed sum."""
        total, output, size = torch.empty_like(hidden_states), torch.empty_like(hidden_states), len(self._weight)
        kernels.add_and_norm_rows[hidden_states.numel() // size,](
            hidden_states, added, self._weight, total, output, size, self._epsilon, **self._options
        )
        return total, output


def options_of(size: int) -> dict[str, int]:
    """Return the constants of the kernel for rows of so many numbers."""
    return {"BLOCK": triton.next_power_of_2(size), "num_warps": WARPS[size > WIDE]}


class PlainRmsNorm:
    """An RMS norm without weights, of rows of any size."""

    def __init__(self, epsilon: float):
        self._epsilon = epsilon
        self._norms: dict[tuple[int, torch.device], RmsNorm] = {}

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the normed rows ``(..., size)``, in their dtype."""
        key = hidden_states.shape[-1], hidden_states.device
        if key not in self._norms:
            self._norms[key] = RmsNorm(hidden_states.new_ones(key[0], dtype=torch.float32), self._epsilon)
        return self._norms[key](hidden_states)
