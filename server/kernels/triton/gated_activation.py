"""The activation between the products of a gated MLP on a CUDA device, in one launch."""

from __future__ import annotations

import torch
import triton

from server.kernels.triton import gated_rows as kernels

NUMBERS = 512  # of a row, of one program


def activate(rows: torch.Tensor, activation: int) -> torch.Tensor:
    """Return ``act(gate) * up`` of rows ``[gate | up]``, in their dtype.

    Args:
        activation: an ``Activation``.
    """
    count, size = len(rows), rows.shape[1] // 2
    y = rows.new_empty(count, size)
    if count:
        kernels.gate_rows[count, triton.cdiv(size, NUMBERS)](
            rows, y, rows.stride(0), size, ACTIVATION=activation, BLOCK=NUMBERS
        )
    return y
