"""Kernel of one step of a short convolution.

States are read from one row and written to another, so that programs which share inputs may all read them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from server.model.blocks.recurrent.triton_kernels import convolve


@triton.jit
def step_convolution(
    projected, conv, conv_weight, conv_bias, sources, targets, y, projected_token, conv_row, channels,
    HAS_BIAS: tl.constexpr, WIDTH: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Run some channels of a short convolution of one token: ``gate_out * conv(gate_in * x)``.

    Args:
        projected: ``[gate_in | gate_out | x]`` of each token.
    """
    token = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < channels
    old = conv + tl.load(sources + token) * conv_row
    new = conv + tl.load(targets + token) * conv_row
    start = projected + token * projected_token + channel
    before = tl.load(start, mask=inside, other=0.0).to(tl.float32)
    after = tl.load(start + channels, mask=inside, other=0.0).to(tl.float32)
    x = before * tl.load(start + 2 * channels, mask=inside, other=0.0).to(tl.float32)
    found = convolve(x, channel, inside, old, new, conv_weight, conv_bias, True, HAS_BIAS, WIDTH, TAPS)
    tl.store(y + token * channels + channel, (after * found).to(y.dtype.element_ty), mask=inside)
