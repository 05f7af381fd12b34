"""Steps of recurrent mixers on a CUDA device: between their projections, in one launch or two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton

from server.kernels.triton import recurrences as kernels

MOST_STATE = 1 << 13  # numbers of a state that one program holds in registers
MOST_NORMED = 1 << 14  # numbers of a group that is normed
CHANNELS = 256  # of a short convolution, of one program
VALUES = 32  # of a head of a gated delta net, of one program
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


def step_convolution(projected: torch.Tensor, convolution: Convolution, rows: Rows) -> torch.Tensor:
    """Return a short convolution's results for single tokens, ``(tokens, channels)``.

    Args:
        projected: ``(tokens, 3 * channels)``.
    """
    weight, bias = convolution.weight, convolution.bias
    count, channels = len(projected), len(weight)
    y = projected.new_empty(count, channels)
    kernels.step_convolution[count, triton.cdiv(channels, CHANNELS)](
        projected, rows.conv, weight, weight if bias is None else bias, rows.sources, rows.targets, y,
        projected.stride(0), rows.conv.stride(0), channels, HAS_BIAS=bias is not None, BLOCK=CHANNELS,
        **convolution.options(rows.conv.shape[-1]),
    )  # fmt: skip
    return y


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
        kernels.norm_gated_rows[count, heads](
            found, projected, self.norm, y, projected.stride(0), *self.gates, 0, self.shared, self.value_dim,
            self.epsilon, GATES_FIRST=False, **norm_options(self.value_dim),
        )  # fmt: skip
        return y


def delta_options(key_dim: int) -> dict[str, int]:
    """Return the constants of the kernel for keys of so many numbers."""
    return {"BLOCK_D": triton.next_power_of_2(key_dim), "BLOCK_V": VALUES, "num_warps": 4}


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
        kernels.norm_gated_rows[count, inner // self.norm_size](
            found, projected, self.norm, y, projected.stride(0), 0, self.norm_size, self.norm_size, 1, self.norm_size,
            self.epsilon, GATES_FIRST=True, **norm_options(self.norm_size),
        )  # fmt: skip
        return y


def mamba2_options(head_dim: int, state_size: int) -> dict[str, int]:
    """Return the constants of the kernel for heads of so many numbers, each with so many in its state."""
    return {"BLOCK_D": triton.next_power_of_2(head_dim), "BLOCK_S": triton.next_power_of_2(state_size), "num_warps": 8}


def norm_options(size: int) -> dict[str, int]:
    """Return the constants of the gated norm for groups of so many numbers."""
    return {"BLOCK": triton.next_power_of_2(size), "num_warps": WARPS[size > WIDE]}
