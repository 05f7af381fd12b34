"""Experts whose weights are plain floating-point matrices."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .linear import linear


def project(
    weights: Mapping[str, torch.Tensor], name: str, rows: torch.Tensor, bias: torch.Tensor | None, is_transposed: bool
) -> torch.Tensor:
    """``(rows, in)`` to ``(rows, out)``. A matrix of another dtype than the rows is converted here, for this use."""
    matrix = weights[name].to(rows.dtype)
    return linear(rows, matrix.mT if is_transposed else matrix, bias)
