"""Kernel of one step of a gated delta net: the convolution and the recurrence.

States are read from one row and written to another, so that programs which share inputs may all read them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from server.model.blocks.recurrent.triton_kernels import convolve, silu, softplus


@triton.jit
def step_delta(
    projected, conv, conv_weight, state, decay, decay_bias, sources, targets, y, projected_token, conv_row, state_row,
    query_first, query_step, key_first, key_step, value_first, value_step, beta_first, alpha_first, scalar_step,
    key_heads, shared, key_dim, value_dim,
    WIDTH: tl.constexpr, TAPS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Run a part of one value head of a gated delta net for one token, up to the norm.

    Args:
        projected: each token's projections. What belongs to a key head begins ``_step`` numbers behind that of the one
            before it, and has the value heads that share it one after the other.
        conv: states of ``[queries | keys | values]`` by channel.
        state: ``(rows, value_heads, key_dim, value_dim)``.
        decay: ``-exp(A_log)`` of each value head.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    group, own = head // shared, head % shared
    source, target = tl.load(sources + token), tl.load(targets + token)
    old, new = conv + source * conv_row, conv + target * conv_row
    start = projected + token * projected_token
    d, e = tl.arange(0, BLOCK_D), tl.program_id(2) * BLOCK_V + tl.arange(0, BLOCK_V)
    has_d, has_e = d < key_dim, e < value_dim
    leads = (own == 0) & (tl.program_id(2) == 0)
    query = tl.load(start + query_first + group * query_step + d, mask=has_d, other=0.0).to(tl.float32)
    of_query = group * key_dim + d
    query = silu(convolve(query, of_query, has_d, old, new, conv_weight, conv_weight, leads, False, WIDTH, TAPS))
    key = tl.load(start + key_first + group * key_step + d, mask=has_d, other=0.0).to(tl.float32)
    of_key = (key_heads + group) * key_dim + d
    key = silu(convolve(key, of_key, has_d, old, new, conv_weight, conv_weight, leads, False, WIDTH, TAPS))
    value = tl.load(start + value_first + group * value_step + own * value_dim + e, mask=has_e, other=0.0)
    of_value = 2 * key_heads * key_dim + head * value_dim + e
    value = value.to(tl.float32)
    value = silu(convolve(value, of_value, has_e, old, new, conv_weight, conv_weight, True, False, WIDTH, TAPS))
    query = query * tl.rsqrt(tl.sum(query * query, axis=0) + 1e-6) * tl.rsqrt(key_dim * 1.0)
    key = key * tl.rsqrt(tl.sum(key * key, axis=0) + 1e-6)
    beta = tl.load(start + beta_first + group * scalar_step + own).to(tl.float32)
    alpha = tl.load(start + alpha_first + group * scalar_step + own).to(tl.float32)
    factor = tl.exp(tl.load(decay + head) * softplus(alpha + tl.load(decay_bias + head)))
    place = head * key_dim * value_dim + d[:, None] * value_dim + e[None, :]
    inside = has_d[:, None] & has_e[None, :]
    s = tl.load(state + source * state_row + place, mask=inside, other=0.0).to(tl.float32) * factor
    delta = (value - tl.sum(s * key[:, None], axis=0)) / (1.0 + tl.exp(-beta))
    s += key[:, None] * delta[None, :]
    tl.store(state + target * state_row + place, s.to(state.dtype.element_ty), mask=inside)
    found = tl.sum(s * query[:, None], axis=0)
    heads = key_heads * shared
    tl.store(y + (token * heads + head) * value_dim + e, found.to(y.dtype.element_ty), mask=has_e)
