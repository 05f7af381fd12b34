"""Matrices of 4-bit floating-point numbers (E2M1) in groups with a scale: MXFP4 and NVFP4.

``NAME_blocks`` is uint8 ``(out, groups, group / 2)``, two numbers a byte, the first in its low half. ``NAME_scales`` is
``(out, groups)``: bytes that are exponents of two (E8M0; OCP Microscaling Formats, version 1.0), or float8 (E4M3).
Where there is ``NAME_divisor``, float32 ``(1,)``, scales are divided by it.

Numbers are looked up by two bytes at a time, in a table that the processor's second cache holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

import torch

from .fp8 import scales
from .pieces import num_rows, project_pieces

BLOCKS = "_blocks"
SCALES = "_scales"
DIVISOR = "_divisor"
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def is_quantised(weights: Mapping[str, torch.Tensor], name: str) -> bool:
    return name + BLOCKS in weights


def dequantise(weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """The float32 matrix ``(out, in)``."""
    return torch.cat(list(_pieces(weights, name, torch.float32)))


def project(
    weights: Mapping[str, torch.Tensor], name: str, rows: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """``(rows, in)`` to ``(rows, out)`` in the dtype of the rows."""
    output = project_pieces(rows, _pieces(weights, name, rows.dtype))
    return output if bias is None else output + bias


def _pieces(weights: Mapping[str, torch.Tensor], name: str, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Some rows of the matrix after the other."""
    blocks, factors = weights[name + BLOCKS], scales(weights[name + SCALES])
    is_exact = dtype == torch.bfloat16 and name + DIVISOR not in weights  # it holds any number times a power of two
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
    """For every two bytes their four bfloat16 numbers, as one int64: ``(65536,)``."""
    values, numbers = torch.tensor(VALUES, dtype=torch.bfloat16), torch.arange(1 << 16)
    return (
        torch.stack([values[numbers >> shift & 15] for shift in (0, 4, 8, 12)], 1)
        .view(torch.int64)
        .flatten()
        .to(device)
    )
