"""Matrices of plain floating-point numbers, not quantised."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from server.kernels.linear import linear
from server.kernels.native import slot_format
from server.kernels.native.slot_format import Places, Shape
from server.kernels.native.structures.matrices import Matrix


def project(
    weights: Mapping[str, torch.Tensor], name: str, rows: torch.Tensor, bias: torch.Tensor | None, is_transposed: bool
) -> torch.Tensor:
    """``(rows, in)`` to ``(rows, out)``; converts a matrix whose dtype is not that of the rows."""
    matrix = weights[name].to(rows.dtype)
    return linear(rows, matrix.mT if is_transposed else matrix, bias)


def describe(places: Places, name: str, shape: Shape, is_transposed: bool) -> Matrix | None:
    """Describe a matrix to the native kernels; None if they do not support it."""
    place = places.get(name)
    if (
        place is None
        or place.dtype not in slot_format.PLAIN
        or place.shape != (shape[::-1] if is_transposed else shape)
    ):
        return None
    return slot_format.matrix(slot_format.PLAIN[place.dtype], shape, place, None, is_transposed=is_transposed)
