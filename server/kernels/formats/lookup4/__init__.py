"""Matrices of 4-bit codes of sixteen given numbers, with a scale per group: NF4 and FP4 of bitsandbytes.

The weight is ``table[code] * scale``.

- ``NAME_lookup`` is uint8 ``(out, groups, group / 2)``, two codes per byte, the first in the low half;
- ``NAME_lookup_scale`` is float32 ``(out, groups)``;
- ``NAME_lookup_table`` is float32 ``(16,)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from server.kernels.formats.chunked import num_rows, project_chunks
from server.kernels.native import slot_format
from server.kernels.native.slot_format import Places, Shape, Tag
from server.kernels.native.structures.matrices import Format, Matrix, Size

CODES, SCALE, TABLE = "_lookup", "_lookup_scale", "_lookup_table"
NUMBERS = 16  # of a table
KINDS = (Format.LOOKUP4,)  # in the native kernels
TAG = Tag(CODES, torch.uint8)


def specs(out_features: int, in_features: int, group: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return dtype and shape of each tensor of a matrix, by suffix."""
    groups = in_features // group
    return {
        CODES: (torch.uint8, (out_features, groups, group // 2)),
        SCALE: (torch.float32, (out_features, groups)),
        TABLE: (torch.float32, (NUMBERS,)),
    }


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
    codes, scales, table = (places.get(name + suffix) for suffix in (CODES, SCALE, TABLE))
    if codes is None or scales is None or table is None or len(codes.shape) != 3:  # noqa: PLR2004
        return None
    if scales.dtype not in slot_format.PLAIN or (table.dtype, table.shape) != (torch.float32, (NUMBERS,)):
        return None
    group = 2 * codes.shape[2]
    if (codes.shape[0], codes.shape[1] * group) != shape or scales.shape != codes.shape[:2]:
        return None
    if group % Size.DECODED and codes.shape[1] != 1:
        return None
    return slot_format.matrix(
        Format.LOOKUP4,
        shape,
        codes,
        scales,
        zeros=table.offset,
        row_block=1,
        column_block=group,
        scale_format=slot_format.PLAIN[scales.dtype],
    )


def _chunks(weights: Mapping[str, torch.Tensor], name: str, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Yield the dequantised matrix, some rows at a time."""
    codes, scale, table = (weights[name + suffix] for suffix in (CODES, SCALE, TABLE))
    out_features, num_groups, half = codes.shape
    pairs = torch.stack((table.repeat(NUMBERS), table.repeat_interleave(NUMBERS)), 1)  # of each byte, (256, 2)
    count = num_rows(num_groups * half * 2)
    for start in range(0, out_features, count):
        chunk = codes[start : start + count]
        values = pairs.index_select(0, chunk.flatten().int()).view(len(chunk), num_groups, 2 * half)
        yield values.mul_(scale[start : start + count].unsqueeze(2)).flatten(1).to(dtype)
