"""Native products with published formats equal those with the dequantised matrix, and are batch-invariant."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.kernels.format_table import describe_matrix
from server.kernels.native.available import availability
from server.kernels.native.library import Kernels
from server.kernels.native.structures.matrices import Matrix
from tests.server.kernels.native.slots import DEQUANTISE, Maker, Tensors, fill_slot, matrix_in, multiply

HERE = availability().runnable
if not HERE:
    pytest.skip("there are no native kernels here", allow_module_level=True)

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
SHAPE = (72, 1152)
FP8_SCALES = (F32, F16, BF16, torch.uint8)
ROWS = (1, 2, 3, 4, 5, 8, 13, 70)

Made = tuple[str, tuple[int, int], Callable[[Maker], Tensors]]
CASES: dict[str, Made] = {
    "fp8_blocks": ("fp8", (256, 1152), lambda make: make.fp8((256, 1152), (2, 9), F32)),
    "fp8_single": ("fp8", SHAPE, lambda make: make.fp8(SHAPE, (1, 1), BF16)),
    "fp8_rows": ("fp8", (70, 1149), lambda make: make.fp8((70, 1149), (70, 1), F16)),
    "fp8_wide": ("fp8", (20, 4352), lambda make: make.fp8((20, 4352), (1, 34), F32)),
    "mxfp8": ("fp8", SHAPE, lambda make: make.fp8(SHAPE, (72, 36), torch.uint8)),
    "nvfp4": ("fp4", SHAPE, lambda make: make.fp4(SHAPE, 16, torch.float8_e4m3fn, has_divisor=True)),
    "fp4_e8m0": ("fp4", SHAPE, lambda make: make.fp4(SHAPE, 16, torch.uint8, has_divisor=False)),
    "mxfp4": ("fp4", SHAPE, lambda make: make.fp4(SHAPE, 32, torch.uint8, has_divisor=False)),
    "lookup4": ("lookup4", SHAPE, lambda make: make.lookup4(SHAPE, 64)),
    "int8": ("int8", (70, 1149), lambda make: make.int8((70, 1149))),
    "int8_wide": ("int8", (6, 4100), lambda make: make.int8((6, 4100))),
    "int8_groups": (
        "int8_groups",
        SHAPE,
        lambda make: make.int8_groups(SHAPE, 9, F16, has_zero=True, has_order=True),
    ),
    "int8_symmetric": (
        "int8_groups",
        SHAPE,
        lambda make: make.int8_groups(SHAPE, 36, BF16, has_zero=False, has_order=False),
    ),
    "int4": ("int4", (192, 1152), lambda make: make.int4((192, 1152), 128, 64, BF16, has_zero=False, has_order=False)),
    "int4_rest": (
        "int4",
        (100, 1160),
        lambda make: make.int4((100, 1160), 128, 32, F16, has_zero=True, has_order=True),
    ),
    "int4_float32": (
        "int4",
        (100, 200),
        lambda make: make.int4((100, 200), 8, 64, F32, has_zero=True, has_order=False),
    ),
}


def rows_of(count: int, inputs: int) -> torch.Tensor:
    return torch.randn((count, inputs), generator=torch.Generator().manual_seed(count))


@pytest.fixture(scope="module", params=HERE)
def kernels(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    made = Kernels(2, request.param)
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_products_equal_those_with_the_dequantised_matrix(kernels: Kernels, case: str) -> None:
    kind, shape, make = CASES[case]
    tensors = make(Maker(0))
    slot = fill_slot(tensors)
    check(kernels, matrix_in(slot, "w", *shape), DEQUANTISE[kind](tensors, "w"), ROWS)


@pytest.mark.parametrize("case", CASES)
def test_products_with_rounded_rows_are_near(kernels: Kernels, case: str) -> None:
    kind, shape, make = CASES[case]
    tensors = make(Maker(0))
    slot, rows = fill_slot(tensors), rows_of(7, shape[1])
    found = multiply(kernels, matrix_in(slot, "w", *shape), rows, is_exact=False)
    wanted = rows @ DEQUANTISE[kind](tensors, "w").T
    assert float((found - wanted).norm() / wanted.norm()) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("is_exact", [True, False])
def test_a_row_gives_the_same_bits_in_any_batch(kernels: Kernels, case: str, is_exact: bool) -> None:
    _, shape, make = CASES[case]
    slot = fill_slot(make(Maker(0)))
    matrix, rows = matrix_in(slot, "w", *shape), rows_of(70, shape[1])
    together = multiply(kernels, matrix, rows, is_exact=is_exact)
    for count in ROWS:
        assert torch.equal(multiply(kernels, matrix, rows[:count], is_exact=is_exact), together[:count])


def check(kernels: Kernels, matrix: Matrix, weights: torch.Tensor, counts: tuple[int, ...]) -> None:
    for count in counts:
        rows = rows_of(count, matrix.inputs)
        wanted, size = rows.double() @ weights.double().T, rows.abs() @ weights.abs().T
        distance = (multiply(kernels, matrix, rows) - wanted).norm()
        allowed = 1e-5 * max(float(wanted.norm()), 0.01 * float(size.norm()))
        # Of weights at their zero point, which are 0, the rounding of two equal products is left.
        assert float(distance) <= allowed + 1e-8 * float(rows.norm()), count


def dividing(number: int, step: int) -> st.SearchStrategy[int]:
    """The numbers of groups whose size is a multiple of ``step``; always includes one."""
    return st.sampled_from([1, *(count for count in range(2, number + 1) if number % (count * step) == 0)])


@pytest.fixture(scope="module", params=HERE)
def any_kernels(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    made = Kernels(1, request.param)
    yield made
    made.close()


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(data=st.data(), seed=st.integers(0, 1000), rows=st.integers(1, 20))
@pytest.mark.parametrize("kind", DEQUANTISE)
def test_products_of_any_shape_equal_those_with_the_dequantised_matrix(
    any_kernels: Kernels, kind: str, data: st.DataObject, seed: int, rows: int
) -> None:
    tensors, shape = draw_tensors(data, kind, Maker(seed))
    slot = fill_slot(tensors)
    check(any_kernels, matrix_in(slot, "w", *shape), DEQUANTISE[kind](tensors, "w"), (rows,))


def draw_tensors(data: st.DataObject, kind: str, make: Maker) -> tuple[Tensors, tuple[int, int]]:
    """Draw the tensors of a matrix of any shape that a format supports."""
    outputs, inputs = data.draw(st.integers(1, 140)), data.draw(st.integers(1, 600))
    flags = {"has_zero": data.draw(st.booleans()), "has_order": data.draw(st.booleans())}
    if kind == "fp4":
        group = data.draw(st.sampled_from([16, 32]))
        shape = (outputs, -(-inputs // group) * group)
        dtype = data.draw(st.sampled_from([torch.uint8, torch.float8_e4m3fn]))
        return make.fp4(shape, group, dtype, has_divisor=data.draw(st.booleans())), shape
    if kind == "lookup4":
        group = data.draw(st.sampled_from([16, 64]))
        shape = (outputs, -(-inputs // group) * group)
        return make.lookup4(shape, group), shape
    if kind in {"fp8", "int8_groups"} and data.draw(st.booleans()):
        inputs = -(-inputs // 16) * 16
    shape = (outputs, inputs)
    if kind == "fp8":
        grid = (data.draw(dividing(outputs, 1)), data.draw(dividing(inputs, 16)))
        return make.fp8(shape, grid, data.draw(st.sampled_from(FP8_SCALES))), shape
    if kind == "int8":
        return make.int8(shape), shape
    dtype = data.draw(st.sampled_from([F32, F16, BF16]))
    if kind == "int8_groups":
        return make.int8_groups(shape, data.draw(dividing(inputs, 16)), dtype, **flags), shape
    group = data.draw(st.sampled_from([8, 16, 32, 64, 128]))
    block = data.draw(st.sampled_from([32, 64]))
    if -(-inputs // group) == 1:
        group = 128
    return make.int4(shape, group, block, dtype, **flags), shape


def test_an_unsupported_variant_has_no_description() -> None:
    make = Maker(0)
    tensors = make.fp8((8, 40), (1, 5), F32)  # groups of 8 inputs
    assert describe_matrix(fill_slot(tensors).parameters, "w", False, 8, 40) is None
