"""Kernel of one step of Mamba-2: the convolution and the recurrence.

States are read from one row and written to another, so that programs which share inputs may all read them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from server.model.blocks.recurrent.triton_kernels import convolve, silu, softplus


@triton.jit
def step_mamba2(
    projected, conv, conv_weight, conv_bias, state, decay, step_bias, direct, sources, targets, y, projected_token,
    conv_row, state_row, heads, shared, head_dim, state_size, groups, least_step, longest_step,
    HAS_BIAS: tl.constexpr, WIDTH: tl.constexpr, TAPS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Run one head of Mamba-2 for one token, up to the gate and the norm.

    Args:
        projected: ``[gate | x | B | C | time steps]`` of each token.
        conv: states of ``[x | B | C]`` by channel.
        state: ``(rows, heads, head_dim, state_size)``.
        decay: ``-exp(A_log)`` of each head.
        shared: heads that share B and C.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    group = head // shared
    source, target = tl.load(sources + token), tl.load(targets + token)
    old, new = conv + source * conv_row, conv + target * conv_row
    inner = heads * head_dim
    start = projected + token * projected_token + inner
    d, i = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_S)
    has_d, has_i = d < head_dim, i < state_size
    leads = head % shared == 0
    of_x = head * head_dim + d
    x = tl.load(start + of_x, mask=has_d, other=0.0).to(tl.float32)
    x = silu(convolve(x, of_x, has_d, old, new, conv_weight, conv_bias, True, HAS_BIAS, WIDTH, TAPS))
    of_b = inner + group * state_size + i
    b = tl.load(start + of_b, mask=has_i, other=0.0).to(tl.float32)
    b = silu(convolve(b, of_b, has_i, old, new, conv_weight, conv_bias, leads, HAS_BIAS, WIDTH, TAPS))
    of_c = of_b + groups * state_size
    c = tl.load(start + of_c, mask=has_i, other=0.0).to(tl.float32)
    c = silu(convolve(c, of_c, has_i, old, new, conv_weight, conv_bias, leads, HAS_BIAS, WIDTH, TAPS))
    time = tl.load(start + inner + 2 * groups * state_size + head).to(tl.float32)
    time = softplus(time + tl.load(step_bias + head))
    time = tl.minimum(tl.maximum(time, least_step), longest_step)
    place = head * head_dim * state_size + d[:, None] * state_size + i[None, :]
    inside = has_d[:, None] & has_i[None, :]
    s = tl.load(state + source * state_row + place, mask=inside, other=0.0).to(tl.float32)
    s = s * tl.exp(tl.load(decay + head) * time) + (time * x)[:, None] * b[None, :]
    tl.store(state + target * state_row + place, s.to(state.dtype.element_ty), mask=inside)
    found = tl.sum(s * c[None, :], axis=1) + tl.load(direct + head) * x
    tl.store(y + token * inner + of_x, found.to(y.dtype.element_ty), mask=has_d)
