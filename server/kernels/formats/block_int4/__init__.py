"""The int4 format of packs: 4-bit codes, with a scale and a zero per output and group of 32 inputs, 4.5 bits a weight.

The weight is ``scale * (TABLE[code] - zero)``. ``blocks`` defines the blocks:

- ``NAME_q4`` is uint8 ``(blocks, octets, 16, 4)``: for each eight inputs of a block, its 16 outputs with four bytes
  each. Their low halves hold the codes of the first four inputs, and their high halves those of the other four.
- ``NAME_q4_scale`` is uint16 ``(blocks, groups, 16)``. The low five bits are the zero, an integer. The others are the
  upper bits of a float16 (sign, five bits of exponent, five of fraction) whose lower bits are zeros; the scale is a
  64th of it.

The table is denser near its middle, where most weights are. It is the result of Lloyd's iteration over groups of
Gaussian weights, with every sign and zero to choose from. Its numbers span 125, so that the sum of two products with
int8 fits int16. Errors of this table and of others:
benchmarks/results/2026-11-26-epyc/int8-and-int4-in-groups-of-32-inputs.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

import torch

from server.kernels.formats import blocks
from server.kernels.formats.blocks import GROUP, Spec
from server.kernels.native.slot_format import Places, Shape, Tag
from server.kernels.native.structures.matrices import Format, Matrix

TABLE = (-51, -37, -26, -17, -9, -2, 5, 11, 17, 23, 29, 36, 43, 51, 60, 74)
LARGEST_ZERO = 31
OUTPUTS = blocks.OUTPUTS
CODES = "_q4"
SCALE = "_q4_scale"
OCTET = 8  # inputs
HALF = 4  # inputs in half an octet; each byte has one code of either half
SCALE_BITS = -32  # mask of a word as int16, all but the last five bits
SHARE = 1 / 64  # keeps usual scales among float16's normal numbers
LARGEST_SCALE = 64512.0  # before SHARE
LARGEST_WEIGHT = LARGEST_SCALE * SHARE * TABLE[-1]
CELL = 2  # cells per unit: the bounds between codes are at edges of cells
FIRST_CELL = TABLE[0] * CELL
NUM_CELLS = (TABLE[-1] - TABLE[0]) * CELL + 1
TRIED_ZEROS = range(1, LARGEST_ZERO + 1, 2)
TRIED_SHARE = 0.97  # of the scale that maps the largest weight to the last number of the table
NUM_REFITS = 2
KINDS = (Format.Q4,)  # in the native kernels
TAG = Tag(CODES, torch.uint8)


def specs(name: str, out_features: int, in_features: int) -> list[Spec]:
    """Name, dtype and shape of each tensor of a matrix."""
    num_blocks, num_groups = blocks.num_blocks(out_features), blocks.num_groups(in_features)
    return [
        (name + CODES, torch.uint8, (num_blocks, num_groups * GROUP // OCTET, OUTPUTS, HALF)),
        (name + SCALE, torch.uint16, (num_blocks, num_groups, OUTPUTS)),
        *blocks.shape_specs(name + CODES, out_features, in_features),
    ]


def quantise(name: str, matrix: torch.Tensor) -> dict[str, torch.Tensor]:
    """Quantise a matrix ``(out, in)``, whose largest magnitude is at most ``LARGEST_WEIGHT``, to its tensors.

    The native kernels do so if there are any, with errors as small.
    """
    native = blocks.quantise(Format.Q4, specs(name, *matrix.shape), matrix)
    return _quantise(name, matrix) if native is None else native | blocks.shape_tensors(name + CODES, matrix)


def _quantise(name: str, matrix: torch.Tensor) -> dict[str, torch.Tensor]:
    """``quantise`` without native kernels."""
    codes, words = [], []
    for groups in blocks.groups_of(matrix):
        found, word = _quantise_groups(groups.flatten(0, 2))
        octets = found.view(*groups.shape[:2], -1, 2, HALF).transpose(1, 2)  # (blocks, octets, 16, 2, 4)
        codes.append(octets[..., 0, :] | octets[..., 1, :] << HALF)
        words.append(word.view(groups.shape[:3]).transpose(1, 2))
    tensors = {name + CODES: torch.cat(codes), name + SCALE: torch.cat(words).view(torch.uint16)}
    return tensors | blocks.shape_tensors(name + CODES, matrix)


def dequantise(weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """The float32 matrix ``(out, in)``."""
    shape = blocks.shape_of(weights, name + CODES, weights[name + SCALE])
    return blocks.join(_chunks(weights, name, shape[1], torch.float32), shape)


def project(
    weights: Mapping[str, torch.Tensor], name: str, rows: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """``(rows, in)`` to ``(rows, out)`` in the dtype of the rows."""
    out_features, in_features = blocks.shape_of(weights, name + CODES, weights[name + SCALE])
    return blocks.project(rows, _chunks(weights, name, in_features, rows.dtype), out_features, bias)


def describe(places: Places, name: str, shape: Shape) -> Matrix | None:
    """Describe a matrix to the native kernels; None if they do not support it."""
    return blocks.describe(Format.Q4, places, name + CODES, shape, OCTET)


def _chunks(
    weights: Mapping[str, torch.Tensor], name: str, in_features: int, dtype: torch.dtype
) -> Iterator[torch.Tensor]:
    """Yield the dequantised matrix, some rows at a time, ``(rows, in)``."""
    codes, words = weights[name + CODES], weights[name + SCALE].view(torch.int16)
    table, count = _table(codes.device), blocks.blocks_per_chunk(words)
    for start in range(0, len(codes), count):
        scale, zero = _scale_and_zero(words[start : start + count].transpose(1, 2).unsqueeze(-1))
        chunk = codes[start : start + count].transpose(1, 2)  # (blocks, 16, octets, 4)
        indices = torch.stack((chunk & 15, chunk >> HALF), 3).int()  # (blocks, 16, octets, 2, 4)
        values = table.index_select(0, indices.flatten()).view(*scale.shape[:3], GROUP).sub_(zero).mul_(scale)
        yield values.flatten(2).flatten(0, 1)[:, :in_features].to(dtype)


@cache
def _table(device: torch.device) -> torch.Tensor:
    return torch.tensor(TABLE, dtype=torch.float32, device=device)


def _scale_and_zero(words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode words, as int16, to float32 scales and zeros."""
    return (words & SCALE_BITS).view(torch.float16).float() * SHARE, (words & LARGEST_ZERO).float()


def _words(scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    """Encode scales, at most the largest one, and zeros to words, as int16; rounds to the nearest scale."""
    bits = (scale / SHARE).half().view(torch.int16)
    return ((bits + (LARGEST_ZERO + 1) // 2) & SCALE_BITS) | zero.to(torch.int16)


def _quantise_groups(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise groups ``(n, 32)`` to codes uint8 and words, as int16 ``(n, 1)``, of the least squared error found.

    For either sign of the scale and every second zero, start from the scale that the largest weight needs, and fit
    scale and zero to the codes that it gives. Then refine the best of these fits.
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
    """Search for the scale and zero of least squared error in each group.

    For given codes, the error of any scale and zero follows from three sums over the group: of the table's numbers, of
    their squares, and of their products with the weights.
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
        """Take the nearest codes for a scale and zero, both ``(n, 1)``, and fit scale and zero to these codes."""
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
        """Restrict the search to scales that a word can hold."""
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
        """Find the cell of each weight on the table's axis."""
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
