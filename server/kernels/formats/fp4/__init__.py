"""Matrices of 4-bit floating-point numbers (E2M1) with a scale per group: MXFP4 and NVFP4.

``NAME_blocks`` is uint8 ``(out, groups, group / 2)``, two numbers per byte, the first in the low half. ``NAME_scales``
is ``(out, groups)``: exponents of two in a byte (E8M0; OCP Microscaling Formats, version 1.0), or float8 (E4M3). Scales
are divided by ``NAME_divisor``, float32 ``(1,)``, if there is one.

A table that fits the processor's second-level cache gives the four numbers of two bytes at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

import torch

from server.kernels.formats.chunked import num_rows, project_chunks
from server.kernels.formats.fp8 import scales
from server.kernels.native import slot_format
from server.kernels.native.slot_format import Places, Shape, Tag
from server.kernels.native.structures.matrices import Format, Matrix, Size

BLOCKS = "_blocks"
SCALES = "_scales"
DIVISOR = "_divisor"
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
KINDS = (Format.MXFP4, Format.FP4)  # in the native kernels
TAG = Tag(BLOCKS, torch.uint8)


def dequantise(weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """The float32 matrix ``(out, in)``."""
    return torch.cat(list(_chunks(weights, name, torch.float32)))


def project(
    weights: Mapping[str, torch.Tensor], name: str, rows: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """``(rows, in)`` to ``(rows, out)`` in the dtype of the rows."""
    return project_chunks(rows, _chunks(weights, name, rows.dtype), bias)


def describe(places: Places, name: str, shape: Shape) -> Matrix | None:
    """Describe a matrix to the native kernels; None if they do not support it."""
    codes, factors, divisor = (places.get(name + suffix) for suffix in (BLOCKS, SCALES, DIVISOR))
    if codes is None or factors is None or len(codes.shape) != 3 or factors.dtype not in slot_format.SCALES:  # noqa: PLR2004
        return None
    group, kind = 2 * codes.shape[2], slot_format.SCALES[factors.dtype]
    if (codes.shape[0], codes.shape[1] * group) != shape or factors.shape != codes.shape[:2]:
        return None
    if kind is Format.E8M0 and divisor is None and group == Size.GROUP:
        return slot_format.matrix(Format.MXFP4, shape, codes, factors)
    if group % Size.DECODED and codes.shape[1] != 1:
        return None
    return slot_format.matrix(
        Format.FP4,
        shape,
        codes,
        factors,
        divisor=None if divisor is None else divisor.offset,
        row_block=1,
        column_block=group,
        scale_format=kind,
    )


def _chunks(weights: Mapping[str, torch.Tensor], name: str, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Yield the dequantised matrix, some rows at a time."""
    blocks, factors = weights[name + BLOCKS], scales(weights[name + SCALES])
    is_exact = dtype == torch.bfloat16 and name + DIVISOR not in weights  # bfloat16 holds any number times 2 ** n
    if name + DIVISOR in weights:
        factors = factors / weights[name + DIVISOR]
    factors = factors.to(dtype if is_exact else torch.float32).unsqueeze(2)  # (out, groups, 1)
    table, (out_features, num_groups, half) = _table(blocks.device), blocks.shape
    count = num_rows(num_groups * half * 2)
    for start in range(0, out_features, count):
        codes = blocks[start : start + count]
        values = table.index_select(0, codes.flatten().view(torch.uint16).int()).view(torch.bfloat16)
        values = values.view(len(codes), num_groups, 2 * half).to(factors.dtype)
        yield values.mul_(factors[start : start + count]).flatten(1).to(dtype)


@cache
def _table(device: torch.device) -> torch.Tensor:
    """The four bfloat16 numbers of every two bytes, as one int64: ``(65536,)``."""
    values, numbers = torch.tensor(VALUES, dtype=torch.bfloat16), torch.arange(1 << 16)
    return (
        torch.stack([values[numbers >> shift & 15] for shift in (0, 4, 8, 12)], 1)
        .view(torch.int64)
        .flatten()
        .to(device)
    )
