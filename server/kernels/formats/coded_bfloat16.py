"""Coded bfloat16: the numbers of a matrix to the bit, in 12 instead of 16 bits.

Products with few rows take as long as their weights are read from memory, so they are faster by what is saved. Most
neighbouring weights differ in magnitude by less than ``2 ** 14``. So a block of 64 inputs has their seven bits of
fraction and the exponents' last bits, and for the sign and the rest of an exponent a code of four bits, relative to a
base (``src/formats/coded.inc``):

- ``NAME_codes`` is uint8 ``(out, in / 64, 96)``: 64 low bytes, then 64 codes of four bits.
- ``NAME_bases`` is uint8 ``(out, in / 64)``; 255 stands for a block that can't be coded so.
- ``NAME_rest`` is bfloat16 ``(plain blocks, 64)``: those blocks. Of a normal distribution it is one of 200.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional as F

from server.kernels.formats.blocks import Spec
from server.kernels.native.library import load
from server.kernels.native.slot_format import Places, Shape
from server.kernels.native.structures.matrices import Format, Matrix, Size

BLOCK = int(Size.CODED_INPUTS)
MOST_INPUTS = int(Size.MOST_CODED_INPUTS)
LANES = 32  # inputs of a block whose codes are the low halves of their bytes
HIGHS = 8  # upper parts of exponents in a block
PLAIN = 255  # the base of a block that is plain
USUAL = 100  # blocks, of which one is plain
OUTPUTS = 1
CODES = "_codes"
BASES = "_bases"
REST = "_rest"
KINDS = (Format.CODED_BFLOAT16,)  # in the native kernels


def takes(matrix: torch.Tensor) -> bool:
    """Return True if a matrix ``(out, in)`` on the CPU can be coded."""
    inputs = matrix.shape[1]
    has_blocks = 0 < inputs <= MOST_INPUTS and inputs % BLOCK == 0
    return has_blocks and matrix.dtype == torch.bfloat16 and matrix.is_cpu and matrix.is_contiguous()


def specs(name: str, out_features: int, in_features: int) -> list[Spec]:
    """Name, dtype and shape of each tensor of a matrix without plain blocks."""
    num_blocks = in_features // BLOCK
    return [
        (name + CODES, torch.uint8, (out_features, num_blocks, BLOCK + LANES)),
        (name + BASES, torch.uint8, (out_features, num_blocks)),
        (name + REST, torch.bfloat16, (0, BLOCK)),
    ]


def is_quantised(weights: Mapping[str, torch.Tensor], name: str) -> bool:
    return name + BASES in weights


def code(name: str, matrix: torch.Tensor) -> dict[str, torch.Tensor]:
    """Code a matrix ``(out, in)`` that ``takes`` accepts."""
    weights = matrix.detach()
    codes, bases, _ = (torch.empty(shape, dtype=dtype) for _, dtype, shape in specs(name, *weights.shape))
    most = len(bases) * bases.shape[1] // USUAL + 1
    while True:
        rest = torch.empty((most, BLOCK), dtype=torch.bfloat16)
        found = load().greenroom_code_bfloat16(
            weights.data_ptr(), bases.numel(), codes.data_ptr(), bases.data_ptr(), rest.data_ptr(), most
        )
        if found <= most:
            return {name + CODES: codes, name + BASES: bases, name + REST: rest[:found].clone()}
        most = found


def dequantise(weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """The float32 matrix ``(out, in)``."""
    codes, bases, rest = weights[name + CODES], weights[name + BASES], weights[name + REST]
    low, both = codes[..., :BLOCK], codes[..., BLOCK:]
    found = torch.cat((both & 15, both >> 4), dim=-1).to(torch.int16)
    high = (found & (HIGHS - 1)) + bases.unsqueeze(-1)
    bits = (found & HIGHS) << 12 | high << 8 | low
    ordered = bits.reshape(*bits.shape[:-1], 4, 2, 8).transpose(-2, -3).reshape(bits.shape)
    matrix: torch.Tensor = ordered.contiguous().view(torch.bfloat16)
    are_plain = bases == PLAIN
    matrix[are_plain] = rest[codes[are_plain][:, :4].contiguous().view(torch.int32).squeeze(-1).long()]
    return matrix.flatten(1).float()


def project(
    weights: Mapping[str, torch.Tensor], name: str, rows: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """``(rows, in)`` to ``(rows, out)`` in the dtype of the rows."""
    return F.linear(rows, dequantise(weights, name).to(rows.dtype), bias)


def describe(places: Places, name: str, shape: Shape) -> Matrix | None:
    """Describe a matrix to the native kernels; None if its tensors are not those of the format."""
    found = [places.get(name + suffix) for suffix in (CODES, BASES, REST)]
    codes, bases, rest = found
    if codes is None or bases is None or rest is None or shape[1] % BLOCK:
        return None
    if [(place.dtype, place.shape) for place in (codes, bases)] != [spec[1:] for spec in specs(name, *shape)[:2]]:
        return None
    return Matrix(
        format=Format.CODED_BFLOAT16,
        outputs=shape[0],
        inputs=shape[1],
        data=codes.offset,
        scales=bases.offset,
        rest=rest.offset,
        row_block=rest.shape[0],
    )
