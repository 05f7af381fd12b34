"""Parts of recurrent mixers' steps on a CUDA device: rows of states, convolutions and norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton

MOST_STATE = 1 << 13  # numbers of a state that one program holds in registers
MOST_NORMED = 1 << 14  # numbers of a group that is normed
WIDE, WARPS = 2048, (4, 16)  # numbers of a group from which a program has more warps


@dataclass(frozen=True)
class Rows:
    """The states that a step reads and writes.

    Args:
        conv: ``(rows, channels, width)``.
        state: ``(rows, heads, ...)``; the first for a mixer without a recurrence.
        sources, targets: rows of the sequences' states before and after the step, int64.
    """

    conv: torch.Tensor
    state: torch.Tensor
    sources: torch.Tensor
    targets: torch.Tensor


@dataclass(frozen=True)
class Convolution:
    """A causal convolution of each channel.

    Args:
        weight: ``(channels, taps)``.
        bias: ``(channels,)``, if there is one.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None

    def options(self, width: int) -> dict[str, Any]:
        """Return the constants of kernels, for states of so many inputs."""
        return {"WIDTH": width, "TAPS": self.weight.shape[1]}


def norm_options(size: int) -> dict[str, int]:
    """Return the constants of the gated norm for groups of so many numbers."""
    return {"BLOCK": triton.next_power_of_2(size), "num_warps": WARPS[size > WIDE]}
