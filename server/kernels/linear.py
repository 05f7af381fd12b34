"""Rows times a matrix, in the order that is fastest for few rows.

With bfloat16 on a CPU the matrix is the left operand. oneDNN then packs the few rows instead of the matrix, which
takes 0.6 to 0.8 of the time up to some hundred rows. One row is computed as two, since a product with one vector
is slower than with two. Measured in benchmarks/results/2026-11-24-unnamed/threads-and-products-of-few-rows.json.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from server.kernels.batch_invariant import is_batch_invariant

MOST_ROWS = 256  # with more, both orders take the same time


def linear(rows: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``rows (rows, in)`` times ``matrix (out, in)``: ``(rows, out)``, perhaps transposed in memory."""
    if not is_few(rows, MOST_ROWS):
        return F.linear(rows, matrix, bias)
    output = (matrix @ rows.expand(2, -1).mT)[:, :1].mT if rows.shape[0] == 1 else (matrix @ rows.mT).mT
    return output if bias is None else output + bias


def is_few(rows: torch.Tensor, most: int) -> bool:
    """Return True if the rows are faster as the right operand; never in batch-invariant mode."""
    if is_batch_invariant():
        return False
    return rows.dtype == torch.bfloat16 and rows.device.type == "cpu" and 0 < rows.shape[0] <= most
