"""Matrices of float8 (E4M3) with one scale for each block of them.

``NAME`` is float8_e4m3fn ``(out, in)`` and ``NAME_scale_inv`` ``(row blocks, column blocks)``: the weight is the
product of both. Blocks are equal, so a single scale is a block of everything. Scales are floating-point numbers, or
bytes that are exponents of two (E8M0).

torch's own conversion takes numbers one by one. Shifted to the place of a float32's bits, a code is its value times
2 ** -120, zeros and subnormal numbers too; the scale takes that back. The codes of NaN, which no weight has, are 480.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from .pieces import num_rows, project_pieces

SCALE = "_scale_inv"
SHIFT = 20  # from the lowest bit of a fraction of 3 to that of one of 23 bits
BITS = -0x78100000  # sign, exponent and fraction after the shift, 0x87f00000 as an int32
REBIAS = 2.0**120  # exponents are biased by 7 and by 127
LARGEST = 2.0**7  # scale that can be multiplied by that


def is_quantised(weights: Mapping[str, torch.Tensor], name: str) -> bool:
    return name + SCALE in weights


def dequantise(weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """The float32 matrix ``(out, in)``."""
    return torch.cat(list(_pieces(weights[name], weights[name + SCALE], torch.float32)))


def project(
    weights: Mapping[str, torch.Tensor], name: str, rows: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """``(rows, in)`` to ``(rows, out)`` in the dtype of the rows."""
    output = project_pieces(rows, _pieces(weights[name], weights[name + SCALE], rows.dtype))
    return output if bias is None else output + bias


def scales(values: torch.Tensor) -> torch.Tensor:
    """Scales as float32, whatever they are kept as."""
    return (values.view(torch.float8_e8m0fnu) if values.dtype == torch.uint8 else values).float()


def _pieces(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Some rows of the matrix after the other."""
    out_features, in_features = codes.shape
    by_rows = scales(scale).repeat_interleave(out_features // len(scale), 0).unsqueeze(2)  # (out, column blocks, 1)
    is_usual = bool((by_rows <= LARGEST).all())
    if is_usual:
        by_rows = by_rows * REBIAS
    count = num_rows(in_features)
    for start in range(0, out_features, count):
        piece, by = codes[start : start + count].view(torch.int8), by_rows[start : start + count]
        values = piece.to(torch.int32).bitwise_left_shift_(SHIFT).bitwise_and_(BITS).view(torch.float32)
        if not is_usual:
            values.mul_(REBIAS)
        values.view(len(piece), by.shape[1], -1).mul_(by)
        yield values.to(dtype)
