"""Matrices of 4 bits with a scale and a zero for each output and group of 32 inputs: 4.5 bits a weight.

The weight is ``scale * (TABLE[code] - zero)``. The blocks are those of ``blocks``:

- ``NAME_q4`` is uint8 ``(blocks, octets, 16, 4)``: at each eight inputs of a block its 16 outputs, and four bytes of
  each, which hold the codes of the first four inputs in their low halves and of the others in their high halves.
- ``NAME_q4_scale`` is uint16 ``(blocks, groups, 16)``. The low five bits are the zero, an integer. The others are the
  upper bits of a float16 (sign, five bits of exponent, five of fraction) whose other bits are zeros; a 64th of it is
  the scale.

The table is denser near its middle, where most weights are; it came from Lloyd's iteration over groups of Gaussian
weights with every sign and zero to choose from (docs/log.md). Its numbers span 125, so that sums of two products with
int8 fit into int16.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

import torch

from . import blocks
from .blocks import GROUP, OUTPUTS, Spec

TABLE = (-51, -37, -26, -17, -9, -2, 5, 11, 17, 23, 29, 36, 43, 51, 60, 74)
LARGEST_ZERO = 31
CODES = "_q4"
SCALE = "_q4_scale"
OCTET = 8  # inputs
HALF = 4  # of them, a byte each
SCALE_BITS = -32  # of a word as int16, all but the last five
SHARE = 1 / 64  # keeps usual scales among float16's normal numbers
LARGEST_SCALE = 64512.0  # before SHARE
LARGEST_WEIGHT = LARGEST_SCALE * SHARE * TABLE[-1]
CELL = 2  # cells a unit: the bounds between codes lie on their edges
FIRST_CELL = TABLE[0] * CELL
NUM_CELLS = (TABLE[-1] - TABLE[0]) * CELL + 1
TRIED_ZEROS = range(1, LARGEST_ZERO + 1, 2)
TRIED_SHARE = 0.97  # of the scale with which the largest weight is the last number of the table
NUM_REFITS = 2


def specs(name: str, out_features: int, in_features: int) -> list[Spec]:
    """Name, dtype and shape of each tensor of a matrix."""
    num_blocks, num_groups = blocks.num_blocks(out_features), blocks.num_groups(in_features)
    return [
        (name + CODES, torch.uint8, (num_blocks, num_groups * GROUP // OCTET, OUTPUTS, HALF)),
        (name + SCALE, torch.uint16, (num_blocks, num_groups, OUTPUTS)),
        *blocks.shape_specs(name + CODES, out_features, in_features),
    ]


def is_quantised(weights: Mapping[str, torch.Tensor], name: str) -> bool:
    return name + CODES in weights


def quantise(name: str, matrix: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of a matrix ``(out, in)`` of no number beyond ``LARGEST_WEIGHT``."""
    codes, words = [], []
    for groups in blocks.chunks(matrix):
        found, word = _quantise_groups(groups.flatten(0, 2))
        octets = found.view(*groups.shape[:2], -1, 2, HALF).transpose(1, 2)  # (blocks, octets, 16, 2, 4)
        codes.append(octets[..., 0, :] | octets[..., 1, :] << HALF)
        words.append(word.view(groups.shape[:3]).transpose(1, 2))
    tensors = {name + CODES: torch.cat(codes), name + SCALE: torch.cat(words).view(torch.uint16)}
    return tensors | blocks.shape_tensors(name + CODES, matrix)


def dequantise(weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """The float32 matrix ``(out, in)``."""
    shape = blocks.shape_of(weights, name + CODES, weights[name + SCALE])
    return blocks.join(_pieces(weights, name, shape[1], torch.float32), shape)


def project(
    weights: Mapping[str, torch.Tensor], name: str, rows: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """``(rows, in)`` to ``(rows, out)`` in the dtype of the rows."""
    out_features, in_features = blocks.shape_of(weights, name + CODES, weights[name + SCALE])
    return blocks.project(rows, _pieces(weights, name, in_features, rows.dtype), out_features, bias)


def _pieces(
    weights: Mapping[str, torch.Tensor], name: str, in_features: int, dtype: torch.dtype
) -> Iterator[torch.Tensor]:
    """Some rows of the matrix after the other, ``(rows, in)``."""
    codes, words = weights[name + CODES], weights[name + SCALE].view(torch.int16)
    table, count = _table(codes.device), blocks.blocks_of_piece(words)
    for start in range(0, len(codes), count):
        scale, zero = _scale_and_zero(words[start : start + count].transpose(1, 2).unsqueeze(-1))
        piece = codes[start : start + count].transpose(1, 2)  # (blocks, 16, octets, 4)
        indices = torch.stack((piece & 15, piece >> HALF), 3).int()  # (blocks, 16, octets, 2, 4)
        values = table.index_select(0, indices.flatten()).view(*scale.shape[:3], GROUP).sub_(zero).mul_(scale)
        yield values.flatten(2).flatten(0, 1)[:, :in_features].to(dtype)


@cache
def _table(device: torch.device) -> torch.Tensor:
    return torch.tensor(TABLE, dtype=torch.float32, device=device)


def _scale_and_zero(words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Decodes words, as int16, to float32 scales and zeros."""
    return (words & SCALE_BITS).view(torch.float16).float() * SHARE, (words & LARGEST_ZERO).float()


def _words(scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    """Words, as int16, of the nearest scale that there is; it may not be larger than the largest."""
    bits = (scale / SHARE).half().view(torch.int16)
    return ((bits + (LARGEST_ZERO + 1) // 2) & SCALE_BITS) | zero.to(torch.int16)


def _quantise_groups(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes uint8 of groups ``(n, 32)``, and words, as int16 ``(n, 1)``, of the least squared error that is found.

    With either sign of the scale and every second zero, the scale is as large as the largest weight needs. What fits
    the codes of each best is noted, the best of all refined.
    """
    search = _Search(values)
    high, low = values.amax(1, keepdim=True), values.amin(1, keepdim=True)
    for sign in (1.0, -1.0):
        most, least = (high, low) if sign > 0 else (-low, -high)
        for tried in TRIED_ZEROS:
            scale = torch.maximum(most / (TABLE[-1] - tried), least / (TABLE[0] - tried))
            search.look_near(scale * (sign * TRIED_SHARE), torch.full_like(scale, tried))
    for _ in range(NUM_REFITS):
        search.look_near(search.scale, search.zero)
    search.settle()
    for _ in range(NUM_REFITS):
        search.look_near(search.scale, search.zero)
    return search.encode(), _words(search.scale, search.zero)


class _Search:
    """The scale and zero of least squared error so far, group by group.

    With the codes given, the error for any scale and zero follows from three sums over the group: of the table's
    numbers, of their squares, and of their products with the weights.
    """

    def __init__(self, values: torch.Tensor):
        self._values, self._sum = values, values.sum(1, keepdim=True)
        self._cells = torch.empty_like(values)
        self._indices = torch.empty(values.numel(), dtype=torch.int32)
        self._numbers = torch.empty(values.numel())
        self._gain = torch.full_like(self._sum, -torch.inf)  # sum of squared weights less squared error
        self._is_settled = False
        self.scale, self.zero = torch.zeros_like(self._sum), torch.zeros_like(self._sum)

    def look_near(self, scale: torch.Tensor, zero: torch.Tensor) -> None:
        """Fit scale and zero, both ``(n, 1)``, to the codes that are nearest with some such."""
        self._locate(scale, zero)
        numbers = torch.index_select(_numbers(), 0, self._indices, out=self._numbers).view_as(self._values)
        products = torch.linalg.vecdot(self._values, numbers).unsqueeze(1)
        squares = torch.linalg.vecdot(numbers, numbers).unsqueeze(1)
        total = numbers.sum(1, keepdim=True)
        slope = (GROUP * products - total * self._sum) / (GROUP * squares - total.square()).clamp_min(0.5)
        fitted = ((total - self._sum / slope) / GROUP).nan_to_num_().round_().clamp_(0, LARGEST_ZERO)
        for zero_tried in (fitted, zero) if self._is_settled else (fitted,):
            product = products - zero_tried * self._sum
            square = (squares - 2 * zero_tried * total + GROUP * zero_tried.square()).clamp_min_(0.5)
            self._offer(product, square, zero_tried)

    def settle(self) -> None:
        """From now on take scales that a word can have."""
        self._is_settled = True
        self.scale, _ = _scale_and_zero(_words(self.scale, self.zero))
        self._gain.fill_(-torch.inf)

    def encode(self) -> torch.Tensor:
        """The nearest codes, uint8 ``(n, 32)``."""
        self._locate(self.scale, self.zero)
        return torch.index_select(_codes(), 0, self._indices).view(self._values.shape)

    def _offer(self, product: torch.Tensor, square: torch.Tensor, zero: torch.Tensor) -> None:
        scale = (product / square).clamp_(-LARGEST_SCALE * SHARE, LARGEST_SCALE * SHARE)
        if self._is_settled:
            scale, _ = _scale_and_zero(_words(scale, zero))
        gain = scale * (2 * product - scale * square)
        is_better = gain > self._gain
        self._gain = torch.where(is_better, gain, self._gain)
        self.scale = torch.where(is_better, scale, self.scale)
        self.zero = torch.where(is_better, zero, self.zero)

    def _locate(self, scale: torch.Tensor, zero: torch.Tensor) -> None:
        """The cells in which the weights lie on the table's axis."""
        steps = torch.where(scale != 0, scale, 1.0)
        torch.addcmul(CELL * zero - FIRST_CELL, self._values, CELL / steps, out=self._cells)
        self._indices.view(self._values.shape).copy_(self._cells.clamp_(0, NUM_CELLS - 1))


@cache
def _codes() -> torch.Tensor:
    """The nearest code in each cell, uint8."""
    middles = (torch.arange(NUM_CELLS) + FIRST_CELL + 0.5) / CELL
    numbers = torch.tensor(TABLE)
    return torch.bucketize(middles, (numbers[1:] + numbers[:-1]) / 2).to(torch.uint8)


@cache
def _numbers() -> torch.Tensor:
    """The nearest number of the table in each cell, float32."""
    return torch.tensor(TABLE, dtype=torch.float32)[_codes().int()]
