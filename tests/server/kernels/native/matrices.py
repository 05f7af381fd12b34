"""Random matrices in each format of the native kernels, with their float64 values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from server.kernels.formats import block_int4 as q4_format
from server.kernels.formats.ggml_types import GGML_TYPES
from server.kernels.native.slot_format import Place
from server.kernels.native.structures.matrices import Format, Matrix
from tests.server.kernels.formats.ggml_matrices import NUMBERS, random_rows

BLOCK = 16  # outputs
GROUP = 32  # inputs
LEAST_EXPONENT, MOST_EXPONENT = 118, 125
FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=torch.float64)
Q4_TABLE = torch.tensor(q4_format.TABLE, dtype=torch.float64)
PLAIN = {torch.float32: Format.FLOAT32, torch.bfloat16: Format.BFLOAT16, torch.float16: Format.FLOAT16}


@dataclass(frozen=True)
class Weights:
    """A matrix in memory, and its values."""

    format: Format
    is_transposed: bool
    data: torch.Tensor
    scales: torch.Tensor | None
    values: torch.Tensor  # float64 (outputs, inputs)

    def described(self, data: int, scales: int | None) -> Matrix:
        outputs, inputs = self.values.shape
        return Matrix(self.format, int(self.is_transposed), outputs, inputs, data, scales)

    @property
    def matrix(self) -> Matrix:
        return self.described(self.data.data_ptr(), None if self.scales is None else self.scales.data_ptr())

    @property
    def is_plain(self) -> bool:
        return self.format in PLAIN.values()


def plain(dtype: torch.dtype, random: torch.Generator, outputs: int, inputs: int, *, is_transposed: bool) -> Weights:
    shape = (inputs, outputs) if is_transposed else (outputs, inputs)
    data = torch.randn(shape, generator=random).to(dtype)
    values = data.double().T if is_transposed else data.double()
    return Weights(PLAIN[dtype], is_transposed, data, None, values)


def q8(random: torch.Generator, outputs: int, inputs: int) -> Weights:
    codes, scales = _grid(random, outputs, inputs, -127, 128), _scales(random, outputs, inputs)
    data = codes.view(-1, BLOCK, codes.shape[1] // 4, 4).transpose(1, 2).to(torch.int8).contiguous()
    values = _scaled(codes.double(), scales)[:outputs, :inputs]
    return Weights(Format.Q8, False, data, _in_blocks(scales), values)


def q4(random: torch.Generator, outputs: int, inputs: int) -> Weights:
    codes, scales = _grid(random, outputs, inputs, 0, 16), _scales(random, outputs, inputs) / q4_format.SHARE
    zeros = _grid(random, outputs, inputs, 0, 32)[:, ::GROUP]
    signs = _grid(random, outputs, inputs, 0, 2)[:, ::GROUP] * 2 - 1
    words = (scales * signs).half().view(torch.int16) & q4_format.SCALE_BITS | zeros.to(torch.int16)
    steps = (words & q4_format.SCALE_BITS).view(torch.float16).double() * q4_format.SHARE
    halves = codes.view(-1, BLOCK, codes.shape[1] // 8, 2, 4).transpose(1, 2)
    data = (halves[..., 0, :] | halves[..., 1, :] << 4).to(torch.uint8).contiguous()
    values = _scaled(Q4_TABLE[codes] - zeros.repeat_interleave(GROUP, 1), steps)[:outputs, :inputs]
    return Weights(Format.Q4, False, data, _in_blocks(words), values)


def mxfp4(random: torch.Generator, outputs: int, inputs: int) -> Weights:
    inputs = max(GROUP, inputs // GROUP * GROUP)  # MXFP4 has only complete groups
    codes = torch.randint(0, 16, (outputs, inputs), generator=random)
    exponents = torch.randint(LEAST_EXPONENT, MOST_EXPONENT, (outputs, inputs // GROUP), generator=random)
    data = (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8)
    values = _scaled(FP4[codes], 2.0 ** (exponents - 127).double())
    return Weights(Format.MXFP4, False, data, exponents.to(torch.uint8), values)


def _of_file(name: str) -> Callable[[torch.Generator, int, int], Weights]:
    """A maker of a type of GGUF files, which has only complete blocks."""
    kind = GGML_TYPES[NUMBERS[name]]

    def make(random: torch.Generator, outputs: int, inputs: int) -> Weights:
        inputs = -(-inputs // kind.inputs) * kind.inputs
        seed = int(torch.randint(1 << 31, (1,), generator=random))
        tensors = kind.repack("", random_rows(name, outputs, inputs, seed), inputs)
        places = {key: Place(each.dtype, tuple(each.shape), 0) for key, each in tensors.items()}
        matrix = kind.describe(places, "", (outputs, inputs))  # which also sets the table of some types
        assert matrix is not None
        codes, *scales = tensors.values()
        values = kind.dequantise(tensors, "").double()
        return Weights(Format(matrix.format), False, codes, next(iter(scales), None), values)

    return make


def _plain(dtype: torch.dtype, *, is_transposed: bool = False) -> Callable[[torch.Generator, int, int], Weights]:
    return lambda random, outputs, inputs: plain(dtype, random, outputs, inputs, is_transposed=is_transposed)


OF_FILES = [kind.name for kind in GGML_TYPES.values() if kind.OUTPUTS == BLOCK]
MAKERS: dict[str, Callable[[torch.Generator, int, int], Weights]] = {
    "float32": _plain(torch.float32),
    "bfloat16": _plain(torch.bfloat16),
    "float16": _plain(torch.float16),
    "float32 transposed": _plain(torch.float32, is_transposed=True),
    "bfloat16 transposed": _plain(torch.bfloat16, is_transposed=True),
    "float16 transposed": _plain(torch.float16, is_transposed=True),
    "q8": q8,
    "q4": q4,
    "mxfp4": mxfp4,
    **{name: _of_file(name) for name in OF_FILES},
}


def _grid(random: torch.Generator, outputs: int, inputs: int, low: int, high: int) -> torch.Tensor:
    """Random integers for complete blocks and groups."""
    shape = (-(-outputs // BLOCK) * BLOCK, -(-inputs // GROUP) * GROUP)
    return torch.randint(low, high, shape, generator=random)


def _scales(random: torch.Generator, outputs: int, inputs: int) -> torch.Tensor:
    """Random float16 scales, one per group."""
    shape = (-(-outputs // BLOCK) * BLOCK, -(-inputs // GROUP))
    return (torch.rand(shape, generator=random) * 0.02 + 0.001).half()


def _scaled(numbers: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return numbers * scales.double().repeat_interleave(GROUP, 1)


def _in_blocks(scales: torch.Tensor) -> torch.Tensor:
    return scales.view(-1, BLOCK, scales.shape[1]).transpose(1, 2).contiguous()
