"""Describes matrices to the native kernels, for the modules of ``server.kernels.formats``.

Addresses in a description are offsets in a slot, as ``ExpertShape`` expects, or addresses of tensors. If the kernels do
not support a variant of a format, there is no description, and torch computes the product.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from server.kernels.native.structures.matrices import Format, Matrix, Size

PLAIN = {torch.float32: Format.FLOAT32, torch.bfloat16: Format.BFLOAT16, torch.float16: Format.FLOAT16}
SCALES = {
    **PLAIN,
    torch.uint8: Format.E8M0,
    torch.float8_e8m0fnu: Format.E8M0,
    torch.float8_e4m3fn: Format.FP8,
}


class Place(NamedTuple):
    """A tensor of a slot, or one in memory of its own."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the slot, or its address


class Tag(NamedTuple):
    """The tensor of a slot that tells a matrix's format: its name's suffix and its dtype, both of one format alone."""

    suffix: str
    dtype: torch.dtype


Places = Mapping[str, Place]
Shape = tuple[int, int]  # outputs and inputs


def matrix(
    kind: Format, shape: Shape, codes: Place, scales: Place | None, *, is_transposed: bool = False, **others: Any
) -> Matrix:
    """Describe a matrix; ``others`` are more fields of ``Matrix``."""
    return Matrix(
        format=kind,
        is_transposed=int(is_transposed),
        outputs=shape[0],
        inputs=shape[1],
        data=codes.offset,
        scales=None if scales is None else scales.offset,
        **others,
    )


def in_blocks(kind: Format, shape: Shape, codes: Place, scales: Place) -> Matrix | None:
    """Describe a matrix whose codes are stored row by row, with one scale per block of equal size."""
    rows, columns = (*scales.shape, 1, 1)[:2]
    if scales.dtype not in SCALES or shape[0] % rows or shape[1] % columns:
        return None
    column_block = shape[1] // columns
    if column_block % Size.DECODED and columns != 1:
        return None
    return matrix(
        kind,
        shape,
        codes,
        scales,
        row_block=shape[0] // rows,
        column_block=column_block,
        scale_format=SCALES[scales.dtype],
    )
