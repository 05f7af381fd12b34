"""Coded bfloat16: the bits of the plain numbers, and products with the bits of theirs."""

from __future__ import annotations

import pytest
import torch

from server.kernels.formats import coded_bfloat16
from server.kernels.native.available import availability
from server.kernels.native.library import Kernels
from server.kernels.native.linear import native_linear, plain_matrix
from server.kernels.native.slot_format import Place
from server.kernels.native.structures.matrices import Matrix

LEVELS = availability().runnable
ROWS = (1, 4, 5, 8, 9, 16, 17, 70)  # around the numbers of rows that kernels treat alike

pytestmark = pytest.mark.skipif(not LEVELS, reason="the native kernels were not built")


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.bfloat16().view(torch.int16)


def weights(outputs: int, inputs: int) -> torch.Tensor:
    """Return normal numbers, blocks with a zero and with far numbers, and a row of zeros."""
    matrix = torch.randn((outputs, inputs), generator=torch.Generator().manual_seed(inputs)) * 0.02
    matrix[0] = 0.0
    matrix[1, 5], matrix[2, 6], matrix[3, inputs - 1] = 0.0, 1e30, -1e-39
    return matrix.bfloat16()


def described(coded: dict[str, torch.Tensor], shape: torch.Size) -> Matrix:
    places = {name: Place(each.dtype, tuple(each.shape), each.data_ptr()) for name, each in coded.items()}
    matrix = coded_bfloat16.describe(places, "w", (shape[0], shape[1]))
    assert matrix is not None
    return matrix


def test_all_numbers_keep_their_bits() -> None:
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.bfloat16).view(256, 256)
    for matrix in (every, every.mT, weights(50, 192), weights(192, 77).mT):
        coded = coded_bfloat16.code("w", matrix)
        numbers = coded_bfloat16.dequantise(coded, "w").view(torch.int32) >> 16
        assert torch.equal(numbers.to(torch.int16), matrix.view(torch.int16))


def test_normal_numbers_take_less_than_78_percent() -> None:
    matrix = (torch.randn((512, 1024), generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    assert sum(each.nbytes for each in coded_bfloat16.code("w", matrix).values()) < 0.78 * matrix.nbytes


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("rounds_float32", [False, True])
def test_products_have_the_bits_of_plain_numbers(level: str, rounds_float32: bool) -> None:
    kernels = Kernels(1, level, rounds_float32=rounds_float32)
    for outputs, inputs in ((37, 64), (70, 1984)):
        matrix = weights(outputs, inputs)
        coded = coded_bfloat16.code("w", matrix)
        plain, found = plain_matrix(matrix), described(coded, matrix.shape)
        assert plain is not None
        for count in ROWS:
            rows = torch.randn((count, inputs), generator=torch.Generator().manual_seed(count))
            for given in (rows, rows.bfloat16()):
                assert torch.equal(native_linear(kernels, given, found), native_linear(kernels, given, plain))


@pytest.mark.parametrize("level", LEVELS)
def test_plain_blocks_without_room_in_a_slot_keep_their_bits(level: str) -> None:
    matrix, kernels = weights(70, 192), Kernels(1, level)
    slot = {name: torch.empty(shape, dtype=dtype) for name, dtype, shape in coded_bfloat16.slot_specs("w", 70, 192, 2)}
    left = coded_bfloat16.code_into(slot, "w", matrix)
    plain, rows = plain_matrix(matrix), torch.randn((3, 192), generator=torch.Generator().manual_seed(0)).bfloat16()
    assert left is not None
    assert plain is not None
    assert torch.equal(native_linear(kernels, rows, described(slot, matrix.shape)), native_linear(kernels, rows, plain))


@pytest.mark.parametrize("level", LEVELS)
def test_rows_are_read_as_they_were(level: str) -> None:
    matrix = weights(20, 128)
    coded, places = coded_bfloat16.code("w", matrix), torch.tensor([3, 0, 19], dtype=torch.int32)
    found = torch.empty((3, 128))
    kernels = Kernels(1, level)
    assert kernels.read_rows(described(coded, matrix.shape), places.data_ptr(), 3, found.data_ptr())
    assert torch.equal(bits(found), bits(matrix[places.long()]))


def test_matrices_with_other_inputs_are_not_taken() -> None:
    taken = [coded_bfloat16.takes(torch.empty((4, inputs), dtype=torch.bfloat16)) for inputs in (64, 96, 1 << 15)]
    assert taken == [True, False, True]
    assert not coded_bfloat16.takes(torch.empty((4, 64)))
