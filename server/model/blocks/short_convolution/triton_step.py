"""The step of a short convolution on a CUDA device."""

from __future__ import annotations

import torch
import triton

from server.model.blocks.recurrent.triton_step import Convolution, Rows
from server.model.blocks.short_convolution import triton_kernels as kernels

CHANNELS = 256  # of one program


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
