"""Matrices of plain floating-point numbers, not quantised."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from server.kernels.linear import linear


def project(
    weights: Mapping[str, torch.Tensor], name: str, rows: torch.Tensor, bias: torch.Tensor | None, is_transposed: bool
) -> torch.Tensor:
    """``(rows, in)`` to ``(rows, out)``; converts a matrix whose dtype is not that of the rows."""
    matrix = weights[name].to(rows.dtype)
    return linear(rows, matrix.mT if is_transposed else matrix, bias)
