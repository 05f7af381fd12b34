"""Parts of recurrent mixers' kernels: the convolution before the recurrence, and gates and norms after it."""

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
