"""Kernels of one step of recurrent mixers: the convolution before the recurrence, the recurrence, and gates after it.

States are read from one row and written to another, so that programs which share inputs may all read them.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def silu(x):
    return x / (1.0 + tl.exp(-x))


@triton.jit
def softplus(x):
    return tl.where(x > 20.0, x, tl.log(1.0 + tl.exp(tl.minimum(x, 20.0))))


@triton.jit
def convolve(
    x, channel, inside, old, new, weight, bias, writes, HAS_BIAS: tl.constexpr, WIDTH: tl.constexpr, TAPS: tl.constexpr
):
    """Return the convolution of channels whose last inputs are those of a state and ``x``; write the state after it.

    Args:
        x: new inputs in float32.
        old, new: states of one sequence, ``(channels, WIDTH)``.
        weight: ``(channels, TAPS)``.
        writes: whether this program writes the new state.
    """
    total = x * tl.load(weight + channel * TAPS + TAPS - 1, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    for tap in tl.static_range(TAPS - 1):
        kept = tl.load(old + channel * WIDTH + WIDTH - TAPS + 1 + tap, mask=inside, other=0.0).to(tl.float32)
        total += kept * tl.load(weight + channel * TAPS + tap, mask=inside, other=0.0).to(tl.float32)
    if writes:
        for place in tl.static_range(WIDTH - 1):
            moved = tl.load(old + channel * WIDTH + place + 1, mask=inside, other=0.0)
            tl.store(new + channel * WIDTH + place, moved, mask=inside)
        tl.store(new + channel * WIDTH + WIDTH - 1, x.to(new.dtype.element_ty), mask=inside)
    return total


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


@triton.jit
def norm_gated_rows(
    x, projected, weight, y, projected_token, gate_first, gate_step, weight_step, shared, size, epsilon,
    GATES_FIRST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Norm one group of one token's numbers, which gates multiply before it or after it.

    Args:
        projected: each token's projections, with gates of as many groups as share a key head one behind the other.
        gate_first, gate_step: where the first gates begin, and the distance to those of the next key head.
        weight_step: distance of the weights of neighbouring groups; 0 if they share them.
    """
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    i = tl.arange(0, BLOCK)
    inside = i < size
    own = (token * tl.num_programs(1) + group) * size + i
    gates = projected + token * projected_token + gate_first + (group // shared) * gate_step + (group % shared) * size
    gate = silu(tl.load(gates + i, mask=inside, other=0.0).to(tl.float32))
    numbers = tl.load(x + own, mask=inside, other=0.0).to(tl.float32)
    if GATES_FIRST:
        numbers = numbers * gate
    numbers = numbers * tl.rsqrt(tl.sum(numbers * numbers, axis=0) / size + epsilon)
    numbers = numbers * tl.load(weight + group * weight_step + i, mask=inside, other=0.0)
    if not GATES_FIRST:
        numbers = numbers * gate
    tl.store(y + own, numbers.to(y.dtype.element_ty), mask=inside)
