"""Matrices of float8 (E4M3) with one scale per block.

``NAME`` is float8_e4m3fn ``(out, in)`` and ``NAME_scale_inv`` ``(row blocks, column blocks)``: the weight is the
product of both. All blocks have one size; a single scale means that the complete matrix is a block. Scales are
floating-point numbers, or exponents of two in a byte (E8M0).

torch converts numbers one by one. Instead, the bits of a code are shifted to those of a float32, which gives its value
times 2 ** -120, zeros and subnormal numbers included; the scale undoes that factor. The codes of NaN, which no weight
has, become 480.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from server.kernels.formats.chunked import num_rows, project_chunks
from server.kernels.native import slot_format
from server.kernels.native.slot_format import Places, Shape, Tag
from server.kernels.native.structures.matrices import Format, Matrix

SCALE = "_scale_inv"
SHIFT = 20  # from the lowest bit of a 3-bit fraction to that of a 23-bit fraction
BITS = -0x78100000  # sign, exponent and fraction after the shift, 0x87f00000 as an int32
REBIAS = 2.0**120  # exponents are biased by 7 and by 127
LARGEST = 2.0**7  # the largest scale that can be multiplied by REBIAS
KINDS = (Format.FP8,)  # in the native kernels
TAG = Tag("", torch.float8_e4m3fn)


def dequantise(weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """The float32 matrix ``(out, in)``."""
    return torch.cat(list(_chunks(weights[name], weights[name + SCALE], torch.float32)))


def project(
    weights: Mapping[str, torch.Tensor], name: str, rows: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """``(rows, in)`` to ``(rows, out)`` in the dtype of the rows."""
    return project_chunks(rows, _chunks(weights[name], weights[name + SCALE], rows.dtype), bias)


def scales(values: torch.Tensor) -> torch.Tensor:
    """Convert scales of any format to float32."""
    return (values.view(torch.float8_e8m0fnu) if values.dtype == torch.uint8 else values).float()


def describe(places: Places, name: str, shape: Shape) -> Matrix | None:
    """Describe a matrix to the native kernels; None if they do not support it."""
    codes, factors = places.get(name), places.get(name + SCALE)
    if codes is None or factors is None or codes.dtype != torch.float8_e4m3fn or codes.shape != shape:
        return None
    return slot_format.in_blocks(Format.FP8, shape, codes, factors)


def _chunks(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Yield the dequantised matrix, some rows at a time."""
    out_features, in_features = codes.shape
    by_rows = scales(scale).repeat_interleave(out_features // len(scale), 0).unsqueeze(2)  # (out, column blocks, 1)
    is_usual = bool((by_rows <= LARGEST).all())
    if is_usual:
        by_rows = by_rows * REBIAS
    count = num_rows(in_features)
    for start in range(0, out_features, count):
        chunk, by = codes[start : start + count].view(torch.int8), by_rows[start : start + count]
        values = chunk.to(torch.int32).bitwise_left_shift_(SHIFT).bitwise_and_(BITS).view(torch.float32)
        if not is_usual:
            values.mul_(REBIAS)
        values.view(len(chunk), by.shape[1], -1).mul_(by)
        yield values.to(dtype)
