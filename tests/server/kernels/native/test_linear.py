"""Native products equal those of float64 as closely as their formats allow, and are batch-invariant."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.kernels.native.library import Kernels
from server.kernels.native.linear import native_linear
from server.kernels.native.structures.matrices import LinearCall
from tests.server.kernels.native.matrices import MAKERS, OF_FILES, PLAIN, Weights
from tests.server.kernels.native.reference import FLOAT32, product_error

ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}  # of the result
UNTOUCHED = 77.0
DTYPES = st.sampled_from(list(PLAIN))


class Call(NamedTuple):
    """The rows, the bias and the options of a product."""

    x: torch.Tensor  # (rows, inputs); rows may have gaps between them
    bias: torch.Tensor | None
    y_dtype: torch.dtype
    y_gap: int  # numbers between two rows of the result
    is_exact: bool


@st.composite
def products(draw: st.DrawFn) -> tuple[Weights, Call]:
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    make = MAKERS[draw(st.sampled_from(list(MAKERS)))]
    weights = make(random, draw(st.integers(1, 200)), draw(st.integers(1, 300)))
    outputs, inputs = weights.values.shape
    rows, x_gap, x_dtype, bias_dtype = draw(st.integers(1, 70)), draw(st.integers(0, 9)), draw(DTYPES), draw(DTYPES)
    x = torch.randn((rows, inputs + x_gap), generator=random).to(x_dtype)[:, :inputs]
    bias = torch.randn(outputs, generator=random).to(bias_dtype) if draw(st.booleans()) else None
    return weights, Call(x, bias, draw(DTYPES), draw(st.integers(0, 9)), draw(st.booleans()))


def multiply(kernels: Kernels, weights: Weights, call: Call) -> torch.Tensor:
    outputs, inputs = weights.values.shape
    rows = len(call.x)
    y = torch.full((rows, outputs + call.y_gap), UNTOUCHED, dtype=call.y_dtype)
    kernels.linear(
        LinearCall(
            matrix=weights.matrix,
            bias=None if call.bias is None else call.bias.data_ptr(),
            x=call.x.data_ptr(),
            y=y.data_ptr(),
            rows=rows,
            x_stride=call.x.stride(0) if rows > 1 else inputs,
            y_stride=outputs + call.y_gap,
            bias_format=0 if call.bias is None else PLAIN[call.bias.dtype],
            x_format=PLAIN[call.x.dtype],
            y_format=PLAIN[call.y_dtype],
            is_exact=int(call.is_exact),
        )
    )
    assert bool((y[:, outputs:] == UNTOUCHED).all())
    return y[:, :outputs]


def most_error(weights: Weights, call: Call, wanted: torch.Tensor) -> torch.Tensor:
    """The tolerance of each result, ``(rows, outputs)``."""
    own = product_error(weights, call.x.double(), is_exact=call.is_exact)
    bias = 0 if call.bias is None else 2 * FLOAT32 * call.bias.double().abs()
    return own + bias + (FLOAT32 + ROUNDING[call.y_dtype]) * wanted.abs()


@settings(max_examples=40)
@given(product=products())
def test_products_are_as_precise_as_their_formats_allow(kernels: Kernels, product: tuple[Weights, Call]) -> None:
    weights, call = product
    wanted = call.x.double() @ weights.values.T + (0 if call.bias is None else call.bias.double())
    error = (multiply(kernels, weights, call).double() - wanted).abs()
    assert bool((error <= most_error(weights, call, wanted)).all())


@settings(max_examples=20)
@given(product=products(), data=st.data())
def test_the_bits_of_a_row_do_not_depend_on_other_rows(
    kernels: Kernels, product: tuple[Weights, Call], data: st.DataObject
) -> None:
    weights, call = product
    together = multiply(kernels, weights, call)
    first = data.draw(st.integers(0, len(call.x) - 1))
    last = data.draw(st.integers(first + 1, len(call.x)))
    assert torch.equal(multiply(kernels, weights, call._replace(x=call.x[first:last])), together[first:last])


@pytest.mark.parametrize(
    ("name", "outputs", "inputs"),
    [
        # More outputs than are computed together, or rows of which the first cache holds a few, and no whole steps.
        *[(name, 300, 69) for name in MAKERS if name.endswith("transposed")],
        *[(name, 21, 2100) for name in ("float32", "bfloat16", "float16")],
    ],
)
def test_a_wide_matrix_gives_the_same_results_for_each_number_of_rows(
    kernels: Kernels, name: str, outputs: int, inputs: int
) -> None:
    random = torch.Generator().manual_seed(0)
    weights = MAKERS[name](random, outputs, inputs)
    call = Call(torch.randn((9, inputs), generator=random), None, torch.float32, 0, False)
    together = multiply(kernels, weights, call)
    wanted = call.x.double() @ weights.values.T
    assert bool(((together.double() - wanted).abs() <= most_error(weights, call, wanted)).all())
    for rows in range(1, 9):
        assert torch.equal(multiply(kernels, weights, call._replace(x=call.x[:rows])), together[:rows])


@pytest.mark.slow
@pytest.mark.parametrize("is_exact", [True, False])
@pytest.mark.parametrize("name", OF_FILES)
def test_products_with_each_type_of_files_are_as_precise_as_it_allows(
    kernels: Kernels, name: str, is_exact: bool
) -> None:
    random = torch.Generator().manual_seed(0)
    weights = MAKERS[name](random, 37, 512)
    call = Call(torch.randn((19, 512), generator=random), None, torch.float32, 0, is_exact)
    wanted = call.x.double() @ weights.values.T
    error = (multiply(kernels, weights, call).double() - wanted).abs()
    assert bool((error <= most_error(weights, call, wanted)).all())


@pytest.mark.slow
@pytest.mark.parametrize("is_exact", [True, False])
@pytest.mark.parametrize("name", OF_FILES)
def test_a_row_gives_the_same_bits_in_company_with_each_type_of_files(
    kernels: Kernels, name: str, is_exact: bool
) -> None:
    random = torch.Generator().manual_seed(0)
    weights = MAKERS[name](random, 21, 512)
    call = Call(torch.randn((70, 512), generator=random), None, torch.float32, 0, is_exact)
    together = multiply(kernels, weights, call)
    for rows in (1, 2, 3, 9, 16, 17):
        assert torch.equal(multiply(kernels, weights, call._replace(x=call.x[:rows])), together[:rows])


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_the_number_of_threads_changes_no_bit(kernels: Kernels, name: str) -> None:
    random = torch.Generator().manual_seed(0)
    weights = MAKERS[name](random, 300, 96)
    call = Call(torch.randn((70, weights.values.shape[1]), generator=random), None, torch.float32, 0, False)
    alone = Kernels(1, kernels.level)
    assert torch.equal(multiply(alone, weights, call), multiply(kernels, weights, call))
    alone.close()


@pytest.mark.parametrize("rounds_float32", [False, True])
def test_rows_in_float32_are_rounded_only_if_the_kernels_may(kernels: Kernels, rounds_float32: bool) -> None:
    random = torch.Generator().manual_seed(0)
    weights, x = MAKERS["q8"](random, 64, 96), torch.randn((3, 96), generator=random)
    alone = Kernels(1, kernels.level, rounds_float32=rounds_float32)
    found = native_linear(alone, x, weights.matrix)
    alone.close()
    exact, rounded = (multiply(kernels, weights, Call(x, None, torch.float32, 0, of)) for of in (True, False))
    assert torch.equal(found, rounded if rounds_float32 else exact)
    assert not torch.equal(exact, rounded)
