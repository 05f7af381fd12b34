"""The rotation of a head's row after its norm, a part of kernels."""

from __future__ import annotations

import triton
import triton.language as tl

NOT_ROTATED: tl.constexpr = tl.constexpr(0)
HALVES: tl.constexpr = tl.constexpr(1)  # number i is rotated with the one half of the rotated numbers further
PAIRS: tl.constexpr = tl.constexpr(2)  # neighbours are rotated
HALVES_OF_PAIRS: tl.constexpr = tl.constexpr(3)  # neighbours are rotated, and then stored one half apart


@triton.jit
def rotate_row(
    start, weight, cosines, sines, size, half, epsilon,
    HAS_NORM: tl.constexpr, ROTATION: tl.constexpr, STEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return a head's row after its RMS norm and rotation, in float32."""
    d = tl.arange(0, BLOCK)
    inside = d < size
    own = d
    if ROTATION == HALVES_OF_PAIRS:
        own = tl.where(d < half, 2 * d, tl.where(d < 2 * half, 2 * (d - half) + 1, d))
    x = tl.load(start + own, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0
    if HAS_NORM:
        scale = tl.rsqrt(tl.sum(x * x, axis=0) / size + epsilon)
        x = x * scale * tl.load(weight + own, mask=inside, other=0.0)
    if ROTATION != NOT_ROTATED:
        turns = d < 2 * half
        if ROTATION == HALVES:
            other = tl.where(d < half, d + half, d - half)
            angle = tl.where(d < half, d, d - half)
            is_first = d < half
        elif ROTATION == HALVES_OF_PAIRS:
            other = own ^ 1
            angle = tl.where(d < half, d, d - half)
            is_first = d < half
        else:
            other = d ^ 1
            angle = d // 2
            is_first = d % 2 == 0
        y = tl.load(start + other, mask=turns, other=0.0).to(tl.float32)
        if HAS_NORM:
            y = y * scale * tl.load(weight + other, mask=turns, other=0.0)
        cosine = tl.load(cosines + angle * STEP, mask=turns, other=1.0).to(tl.float32)
        sine = tl.load(sines + angle * STEP, mask=turns, other=0.0).to(tl.float32)
        x = x * cosine + tl.where(is_first, -y, y) * sine
    return x
