"""Products with matrices that are dequantised in chunks of rows, so that each chunk stays in the processor's caches."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from server.kernels.linear import linear

# Half as many weights take a twentieth more time; measured in
# benchmarks/results/2026-11-25-epyc/published-formats.json.
CHUNK_WEIGHTS = 1 << 20


def num_rows(in_features: int) -> int:
    """The number of output channels in a chunk."""
    return max(1, CHUNK_WEIGHTS // in_features)


def in_order(matrix: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """Put the columns of a matrix ``(out, in)`` in the order of the inputs; column i belongs to input ``order[i]``."""
    return matrix if order is None else torch.empty_like(matrix).index_copy_(1, order.long(), matrix)


def project_chunks(
    rows: torch.Tensor, chunks: Iterable[torch.Tensor], bias: torch.Tensor | None = None
) -> torch.Tensor:
    """``rows (rows, in)`` times a matrix in chunks ``(some of out, in)``, and a bias: ``(rows, out)``."""
    output = torch.cat([linear(rows, chunk) for chunk in chunks], 1)
    return output if bias is None else output + bias
