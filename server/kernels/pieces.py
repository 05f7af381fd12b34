"""Matrices that are dequantised piece by piece, so that what is made of them stays in the processor's caches."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from .linear import linear

PIECE = 1 << 20  # weights; half of them take a twentieth more time (docs/log.md)


def num_rows(in_features: int) -> int:
    """Output channels of a piece."""
    return max(1, PIECE // in_features)


def in_order(matrix: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """A matrix ``(out, in)`` whose columns are those of the inputs ``order (in,)``, as the inputs come."""
    return matrix if order is None else torch.empty_like(matrix).index_copy_(1, order.long(), matrix)


def project_pieces(rows: torch.Tensor, pieces: Iterable[torch.Tensor]) -> torch.Tensor:
    """``rows (rows, in)`` times a matrix whose pieces are ``(some of out, in)``: ``(rows, out)``."""
    return torch.cat([linear(rows, piece) for piece in pieces], 1)
