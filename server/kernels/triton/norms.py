"""Kernel of an RMS norm of rows, in one launch instead of a launch for each of its operations."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def norm_rows(x, weight, y, size, epsilon, BLOCK: tl.constexpr):
    """Norm one row in float32: ``y = x / sqrt(mean(x^2) + epsilon) * weight``, rounded once."""
    row = tl.program_id(0).to(tl.int64) * size
    i = tl.arange(0, BLOCK)
    numbers = tl.load(x + row + i, mask=i < size, other=0.0).to(tl.float32)
    normed = numbers * tl.rsqrt(tl.sum(numbers * numbers, axis=0) / size + epsilon)
    factor = tl.load(weight + i, mask=i < size, other=0.0)
    tl.store(y + row + i, (normed * factor).to(y.dtype.element_ty), mask=i < size)
