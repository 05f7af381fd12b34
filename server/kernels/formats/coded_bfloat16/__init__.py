"""Coded bfloat16: the numbers of a matrix to the bit, in 12 instead of 16 bits.

Products with few rows take as long as their weights are read from memory, so they are faster by what is saved. Most
neighbouring weights differ in magnitude by less than ``2 ** 14``. So a block of 64 inputs has their seven bits of
fraction and the exponents' last bits, and for the sign and the rest of an exponent a code of four bits, relative to a
base (``coded.inc``):

- ``NAME_codes`` is uint8 ``(out, in / 64, 96)``: 64 low bytes, then 64 codes of four bits.
- ``NAME_bases`` is uint8 ``(out, in / 64)``; 255 stands for a block that can't be coded so.
- ``NAME_rest`` is bfloat16 ``(plain blocks, 64)``: those blocks. Of a normal distribution it is one of 200.
- ``NAME_more``, of an expert's slot, is int64 ``(2,)``: address and number of the blocks that ``rest`` has no room for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ctypes import c_int16

import torch
from torch.nn import functional as F

from expert_store import empty_tensor
from server.kernels.formats.blocks import Spec
from server.kernels.native.library import load
from server.kernels.native.slot_format import Places, Shape, Tag
from server.kernels.native.structures.matrices import Format, Matrix, Size

BLOCK = int(Size.CODED_INPUTS)
MOST_INPUTS = int(Size.MOST_CODED_INPUTS)
LANES = 32  # inputs of a block whose codes are the low halves of their bytes
HIGHS = 8  # upper parts of exponents in a block
PLAIN = 255  # the base of a block that is plain
USUAL = 100  # blocks, of which one is plain
LEAST_BYTES = (
    32 << 20
)  # of plain weights, to be coded; less may lie in the processor's caches, and is read fast from there
MOST_OF_PLAIN = 0.82  # of the bytes; 0.76 without plain blocks, which take long to read where there are many
OUTPUTS = 1
MATRIX_DIMENSIONS = 2
CODES = "_codes"
BASES = "_bases"
REST = "_rest"
MORE = "_more"
KINDS = (Format.CODED_BFLOAT16,)  # in the native kernels
TAG = Tag(CODES, torch.uint8)


def takes(matrix: torch.Tensor) -> bool:
    """Return True if a matrix ``(out, in)`` on the CPU can be coded; it may be the transpose of a contiguous tensor."""
    is_dense = matrix.is_contiguous() or matrix.mT.is_contiguous()
    return takes_shape(matrix.dtype, matrix.shape) and matrix.is_cpu and is_dense


def takes_shape(dtype: torch.dtype, shape: Sequence[int]) -> bool:
    """Return True if a tensor of a shape is a matrix ``(out, in)`` that can be coded."""
    is_matrix = dtype == torch.bfloat16 and len(shape) == MATRIX_DIMENSIONS
    return is_matrix and 0 < shape[1] <= MOST_INPUTS and shape[1] % BLOCK == 0


def specs(name: str, out_features: int, in_features: int) -> list[Spec]:
    """Name, dtype and shape of each tensor of a matrix without plain blocks."""
    num_blocks = in_features // BLOCK
    return [
        (name + CODES, torch.uint8, (out_features, num_blocks, BLOCK + LANES)),
        (name + BASES, torch.uint8, (out_features, num_blocks)),
        (name + REST, torch.bfloat16, (0, BLOCK)),
    ]


def slot_specs(name: str, out_features: int, in_features: int, most_plain: int) -> list[Spec]:
    """Name, dtype and shape of each tensor of a matrix in an expert's slot, with memory for some plain blocks."""
    codes, bases, (rest, dtype, _) = specs(name, out_features, in_features)
    return [codes, bases, (rest, dtype, (most_plain, BLOCK)), (name + MORE, torch.int64, (2,))]


def code(name: str, matrix: torch.Tensor) -> dict[str, torch.Tensor]:
    """Code a matrix ``(out, in)`` that ``takes`` accepts."""
    weights = matrix.detach()
    codes, bases, _ = (empty_tensor(dtype, shape) for _, dtype, shape in specs(name, *weights.shape))
    rest = torch.empty((bases.numel() // USUAL + 1, BLOCK), dtype=torch.bfloat16)
    found = _code(weights, codes, bases, rest)
    if found > len(rest):
        rest = torch.empty((found, BLOCK), dtype=torch.bfloat16)
        _code(weights, codes, bases, rest)
    return {name + CODES: codes, name + BASES: bases, name + REST: rest[:found].clone()}


def code_into(slot: Mapping[str, torch.Tensor], name: str, matrix: torch.Tensor) -> torch.Tensor | None:
    """Code a matrix ``(out, in)`` that ``takes`` accepts into the tensors of ``slot_specs``.

    Returns:
        The plain blocks that found no room, to which the slot now refers; None if there are none.
    """
    codes, bases, rest, more = (slot[name + suffix] for suffix in (CODES, BASES, REST, MORE))
    more.zero_()
    found, room = _code(matrix, codes, bases, rest), len(rest)
    if found <= room:
        return None
    every = torch.empty((found, BLOCK), dtype=torch.bfloat16)
    _code(matrix, codes, bases, every)
    rest.copy_(every[:room])
    left = every[room:].clone()
    more[0], more[1] = left.data_ptr(), len(left)
    return left


def share_of_plain(matrix: torch.Tensor) -> float:
    """Return the share of plain blocks in a matrix ``(out, in)`` that ``takes`` accepts."""
    codes, bases, rest = (torch.empty(shape, dtype=dtype) for _, dtype, shape in specs("", *matrix.shape))
    return _code(matrix, codes, bases, rest) / max(1, bases.numel())


def _code(matrix: torch.Tensor, codes: torch.Tensor, bases: torch.Tensor, rest: torch.Tensor) -> int:
    """Code a matrix; returns the number of plain blocks, of which those are written that there is room for."""
    found: int = load().greenroom_code_bfloat16(
        matrix.data_ptr(),
        not matrix.is_contiguous(),
        *matrix.shape,
        codes.data_ptr(),
        bases.data_ptr(),
        rest.data_ptr(),
        len(rest),
    )
    return found


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
    plain = torch.cat((rest, _more(weights[name + MORE]))) if name + MORE in weights else rest
    matrix[are_plain] = plain[codes[are_plain][:, :4].contiguous().view(torch.int32).squeeze(-1).long()]
    return matrix.flatten(1).float()


def _more(more: torch.Tensor) -> torch.Tensor:
    """Return the plain blocks ``(blocks, 64)`` to which a slot refers."""
    address, count = more.tolist()
    memory = (c_int16 * (count * BLOCK)).from_address(address) if count else ()
    return torch.tensor(memory, dtype=torch.int16).view(torch.bfloat16).view(-1, BLOCK)


def project(
    weights: Mapping[str, torch.Tensor], name: str, rows: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """``(rows, in)`` to ``(rows, out)`` in the dtype of the rows."""
    return F.linear(rows, dequantise(weights, name).to(rows.dtype), bias)


def describe(places: Places, name: str, shape: Shape) -> Matrix | None:
    """Describe a matrix to the native kernels; None if its tensors are not those of the format."""
    codes, bases, rest, more = (places.get(name + suffix) for suffix in (CODES, BASES, REST, MORE))
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
        zeros=None if more is None else more.offset,
        row_block=rest.shape[0],
    )
