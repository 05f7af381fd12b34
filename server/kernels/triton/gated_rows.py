"""Kernel of the activation between the products of a gated MLP."""

from __future__ import annotations

import triton
import triton.language as tl

from server.kernels.triton.activations import activate


@triton.jit
def gate_rows(x, y, x_row, size, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    """Compute a part of one row of ``act(gate) * up``, of ``[gate | up]``."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    gate = tl.load(x + row * x_row + i, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x + row * x_row + size + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * size + i, activate(gate, up, 1.0, 0.0, ACTIVATION, True).to(y.dtype.element_ty), mask=inside)
