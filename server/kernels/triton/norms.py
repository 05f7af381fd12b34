"""Kernels of an RMS norm of rows, in one launch instead of a launch for each of its operations."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def norm_rows(x, weight, y, x_row, size, epsilon, BLOCK: tl.constexpr):
    """Norm one row in float32: ``y = x / sqrt(mean(x^2) + epsilon) * weight``, rounded once; ``x_row`` is a stride."""
    row = tl.program_id(0).to(tl.int64) * size
    i = tl.arange(0, BLOCK)
    numbers = tl.load(x + tl.program_id(0).to(tl.int64) * x_row + i, mask=i < size, other=0.0).to(tl.float32)
    _norm(numbers, i, weight, y + row, size, epsilon)


@triton.jit
def add_and_norm_rows(x, added, weight, total, y, size, epsilon, BLOCK: tl.constexpr):
    """Add one row to another and norm the sum as ``norm_rows`` does, after it was rounded to the dtype of ``total``."""
    row = tl.program_id(0).to(tl.int64) * size
    i = tl.arange(0, BLOCK)
    numbers = tl.load(x + row + i, mask=i < size, other=0.0).to(tl.float32)
    others = tl.load(added + row + i, mask=i < size, other=0.0).to(tl.float32)
    rounded = (numbers + others).to(total.dtype.element_ty)
    tl.store(total + row + i, rounded, mask=i < size)
    _norm(rounded.to(tl.float32), i, weight, y + row, size, epsilon)


@triton.jit
def _norm(numbers, i, weight, y, size, epsilon):
    normed = numbers * tl.rsqrt(tl.sum(numbers * numbers, axis=0) / size + epsilon)
    factor = tl.load(weight + i, mask=i < size, other=0.0)
    tl.store(y + i, (normed * factor).to(y.dtype.element_ty), mask=i < size)
