"""The formats of packs: small errors, and products equal to those with the dequantised matrix."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.kernels.format_table import format_of
from server.kernels.formats import block_int4, block_int8, blocks, channel_int8, group_int4
from server.kernels.native import library
from tests.old_packs import int4_matrix, int8_matrix

Quantise = Callable[[torch.Tensor], dict[str, torch.Tensor]]

SHAPES = [(128, 256), (96, 192), (64, 32), (100, 130), (7, 5), (1, 1), (33, 129)]
FORMATS: dict[str, tuple[ModuleType, Quantise]] = {
    "q8": (block_int8, lambda matrix: block_int8.quantise("w", matrix)),
    "q4": (block_int4, lambda matrix: block_int4.quantise("w", matrix)),
    "int8": (channel_int8, lambda matrix: int8_matrix("w", matrix)),
    "int4-64": (group_int4, lambda matrix: int4_matrix("w", matrix, 64)),
    "int4-32": (group_int4, lambda matrix: int4_matrix("w", matrix, 32)),
}
WRITTEN = pytest.mark.parametrize("kernel", [block_int8, block_int4], ids=["q8", "q4"])
ERRORS = {
    block_int8: 0.0052,
    block_int4: 0.066,
}  # error by the norm of Gaussian weights; llama.cpp's Q8_0 has 0.0053, its Q4_K 0.072
STEPS = {block_int8: 127, block_int4: 12.5}  # the largest weight by this is the largest error of a weight
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 0.01, torch.float16: 0.002}


def gaussian(shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm().clamp_min(1e-12))


@pytest.mark.slow
@WRITTEN
@settings(max_examples=40, deadline=None)
@given(out_features=st.integers(1, 70), in_features=st.integers(1, 140), seed=st.integers(0, 1000))
def test_tensors_are_as_specified(kernel: ModuleType, out_features: int, in_features: int, seed: int) -> None:
    tensors = kernel.quantise("w", gaussian((out_features, in_features), seed))
    specs = kernel.specs("w", out_features, in_features)
    assert [(name, value.dtype, tuple(value.shape)) for name, value in tensors.items()] == specs
    assert format_of(tensors, "w") is kernel


@pytest.mark.slow
@WRITTEN
@settings(max_examples=40, deadline=None)
@given(out_features=st.integers(1, 70), in_features=st.integers(1, 140), seed=st.integers(0, 1000))
def test_no_weight_is_off_by_more_than_a_step(
    kernel: ModuleType, out_features: int, in_features: int, seed: int
) -> None:
    matrix = gaussian((out_features, in_features), seed)
    found = kernel.dequantise(kernel.quantise("w", matrix), "w")
    assert found.shape == matrix.shape
    assert float((found - matrix).abs().max()) <= float(matrix.abs().max()) / STEPS[kernel] * 2


@WRITTEN
@pytest.mark.parametrize("size", [1e-3, 0.02, 1.0, 300.0])
def test_gaussian_weights_lose_less_than_in_the_formats_of_as_many_bits(kernel: ModuleType, size: float) -> None:
    matrix = gaussian((256, 512)) / 0.02 * size
    assert distance(kernel.dequantise(kernel.quantise("w", matrix), "w"), matrix) < ERRORS[kernel]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(FORMATS))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
def test_products_equal_those_with_the_float_matrix(name: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    kernel, quantise = FORMATS[name]
    tensors = quantise(gaussian(shape))
    matrix, bias = kernel.dequantise(tensors, "w"), torch.linspace(-1, 1, shape[0])
    for count in (1, 3, 8, 9, 60):
        rows = torch.randn((count, shape[1]), generator=torch.Generator().manual_seed(count)).to(dtype)
        found = kernel.project(tensors, "w", rows, bias.to(dtype))
        assert found.dtype == dtype
        assert distance(found, rows.float() @ matrix.T + bias.to(dtype).float()) < TOLERANCES[dtype]


@WRITTEN
def test_a_product_in_chunks_is_that_with_the_complete_matrix(
    kernel: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, rows = kernel.quantise("w", gaussian((100, 130))), gaussian((4, 130), 1)
    complete = kernel.project(tensors, "w", rows, None)
    monkeypatch.setattr(blocks, "CHUNK_WEIGHTS", 1)
    torch.testing.assert_close(kernel.project(tensors, "w", rows, None), complete)


@WRITTEN
def test_a_matrix_quantised_in_parts_is_the_same(kernel: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    complete = kernel.quantise("w", gaussian((300, 250)))
    monkeypatch.setattr(blocks, "QUANTISED_WEIGHTS", 1)
    pieces = kernel.quantise("w", gaussian((300, 250)))
    assert all(torch.equal(complete[name], pieces[name]) for name in complete)


def test_codes_of_int8_are_in_quads_of_inputs() -> None:
    matrix = torch.arange(32 * 64).view(32, 64) % 128 - 64.0
    tensors = block_int8.quantise("w", matrix)
    steps = tensors["w_q8_scale"][1, 1, 3].float()
    assert torch.equal(
        tensors["w_q8"][1, 8 + 2, 3] * steps, block_int8.dequantise(tensors, "w")[16 + 3, 32 + 8 : 32 + 12]
    )


def test_codes_of_int4_are_in_octets_of_inputs() -> None:
    tensors = block_int4.quantise("w", gaussian((32, 64)))
    word = tensors["w_q4_scale"].view(torch.int16)[1, 1, 3]
    scale, zero = (word & -32).view(torch.float16).float() / 64, word & 31
    octet = tensors["w_q4"][1, 4 + 2, 3]
    codes = torch.cat((octet & 15, octet >> 4)).int()
    wanted = scale * (torch.tensor(block_int4.TABLE)[codes] - zero)
    assert torch.equal(block_int4.dequantise(tensors, "w")[16 + 3, 32 + 16 : 32 + 24], wanted)


def test_codes_of_int4_are_the_nearest() -> None:
    matrix = gaussian((16, 32))
    tensors = block_int4.quantise("w", matrix)
    scale, zero = block_int4._scale_and_zero(tensors["w_q4_scale"].view(torch.int16))
    numbers = torch.tensor(block_int4.TABLE) - zero.view(16, 1, 1)
    nearest = (scale.view(16, 1, 1) * numbers - matrix.unsqueeze(-1)).abs().amin(-1)
    torch.testing.assert_close((block_int4.dequantise(tensors, "w") - matrix).abs(), nearest)


@pytest.mark.skipif(not library.is_available(), reason="the native kernels were not built")
@WRITTEN
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
def test_native_kernels_quantise_with_no_larger_errors_than_torch(kernel: ModuleType, dtype: torch.dtype) -> None:
    matrix = gaussian((200, 330))
    matrix[::7, ::11] *= 20
    matrix = matrix.to(dtype)
    native, by_torch = kernel.quantise("w", matrix), kernel._quantise("w", matrix)
    error, wanted = (distance(kernel.dequantise(each, "w"), matrix) for each in (native, by_torch))
    assert error <= wanted * (1 + 1e-4)
    same = native["w" + kernel.CODES] == by_torch["w" + kernel.CODES]
    assert float(same.float().mean()) > 0.99  # a sum in another order decides ties


def test_this_processor_has_a_fused_product_for_some_block_size() -> None:
    """If torch has the fused product, it takes at least one block size."""
    if torch.backends.cpu.get_cpu_capability() not in {"AVX2", "AVX512"}:
        pytest.skip("torch has no fused product for this processor")
    assert group_int4.native_block() in group_int4.BLOCKS


@WRITTEN
@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e-3, -7e4])
def test_constant_matrices_stay_constant(kernel: ModuleType, value: float) -> None:
    matrix = torch.full((64, 130), value)
    assert torch.allclose(kernel.dequantise(kernel.quantise("w", matrix), "w"), matrix, rtol=0.016)


@WRITTEN
def test_weights_too_small_for_a_scale_become_zeros(kernel: ModuleType) -> None:
    found = kernel.dequantise(kernel.quantise("w", torch.full((64, 130), 1e-12)), "w")
    assert torch.equal(found, torch.zeros(64, 130))


@pytest.mark.slow
@WRITTEN
@settings(max_examples=40, deadline=None)
@given(
    outliers=st.lists(st.tuples(st.integers(0, 39), st.integers(0, 149), st.floats(-1e4, 1e4)), max_size=8),
)
def test_outliers_affect_only_their_group(kernel: ModuleType, outliers: list[tuple[int, int, float]]) -> None:
    """They may be clipped, but the group's error never exceeds that of plain rounding."""
    matrix = gaussian((40, 150))
    for row, column, value in outliers:
        matrix[row, column] = value
    found = kernel.dequantise(kernel.quantise("w", matrix), "w")
    off, groups = (torch.nn.functional.pad(each, (0, 10)).unflatten(1, (-1, 32)) for each in (found - matrix, matrix))
    step = groups.abs().amax(-1) / STEPS[kernel]
    assert bool((off.square().mean(-1).sqrt() <= step).all())
