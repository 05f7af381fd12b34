"""Quantised matrices are near what they were, and products with them are those with the dequantised matrix."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.kernels import int4, int8

SHAPES = [(128, 256), (96, 192), (64, 32), (100, 130), (7, 5), (1, 1), (33, 129)]
ERRORS = {int8: 0.01, int4: 0.1}  # of the norm of Gaussian weights
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 0.01, torch.float16: 0.002}
FORMATS = pytest.mark.parametrize("kernel", [int8, int4], ids=["int8", "int4"])


def gaussian(shape: tuple[int, int]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02


def quantise(kernel: ModuleType, matrix: torch.Tensor, block: int = 64) -> dict[str, torch.Tensor]:
    return int4.quantise("w", matrix, block) if kernel is int4 else int8.quantise("w", matrix)


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm().clamp_min(1e-12))


@FORMATS
@pytest.mark.parametrize("shape", SHAPES)
def test_tensors_are_as_specified_and_near_the_matrix(kernel: ModuleType, shape: tuple[int, int]) -> None:
    tensors = quantise(kernel, gaussian(shape))
    specs = int4.specs("w", *shape, 64) if kernel is int4 else int8.specs("w", *shape)
    assert [(name, value.dtype, tuple(value.shape)) for name, value in tensors.items()] == specs
    assert kernel.is_quantised(tensors, "w")
    assert distance(kernel.dequantise(tensors, "w"), gaussian(shape)) < ERRORS[kernel]


@FORMATS
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("block", int4.BLOCKS)
def test_products_are_those_with_the_dequantised_matrix(
    kernel: ModuleType, shape: tuple[int, int], dtype: torch.dtype, block: int
) -> None:
    tensors = quantise(kernel, gaussian(shape), block)
    matrix, bias = kernel.dequantise(tensors, "w"), torch.linspace(-1, 1, shape[0])
    for count in (1, 3, 8, 9, 60):
        rows = torch.randn((count, shape[1]), generator=torch.Generator().manual_seed(count)).to(dtype)
        found = kernel.project(tensors, "w", rows, bias.to(dtype))
        assert found.dtype == dtype
        assert distance(found, rows.float() @ matrix.T + bias.to(dtype).float()) < TOLERANCES[dtype]


def test_blocks_of_this_processor_are_multiplied_without_dequantising_them() -> None:
    """Where torch has the fused product, at least one size of blocks goes through it."""
    if torch.backends.cpu.get_cpu_capability() not in {"AVX2", "AVX512"}:
        pytest.skip("torch has no fused product for this processor")
    assert int4.native_block() in int4.BLOCKS


def test_clipping_and_fitting_beat_plain_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = gaussian((128, 256))
    fitted = distance(int4.dequantise(int4.quantise("w", matrix, 64), "w"), matrix)
    monkeypatch.setattr(int4, "CLIP_RATIOS", (1.0,))
    monkeypatch.setattr(int4, "NUM_REFITS", 0)
    plain = distance(int4.dequantise(int4.quantise("w", matrix, 64), "w"), matrix)
    assert fitted < 0.95 * plain


def test_a_matrix_quantised_by_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = int4.quantise("w", gaussian((300, 256)), 64)
    monkeypatch.setattr(int4, "CHUNK", 1)
    pieces = int4.quantise("w", gaussian((300, 256)), 64)
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)


@FORMATS
@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e-12, 1e12])
def test_constant_matrices_stay_constant(kernel: ModuleType, value: float) -> None:
    matrix = torch.full((64, 130), value)
    assert torch.allclose(kernel.dequantise(quantise(kernel, matrix), "w"), matrix, rtol=0.01)


@FORMATS
@settings(max_examples=40)
@given(
    outliers=st.lists(st.tuples(st.integers(0, 39), st.integers(0, 149), st.floats(-1e4, 1e4)), max_size=8),
)
def test_no_weight_is_off_by_more_than_a_step(kernel: ModuleType, outliers: list[tuple[int, int, float]]) -> None:
    """Outliers may be clipped, but never so that the group as a whole is worse off than by plain rounding."""
    matrix = gaussian((40, 150))
    for row, column, value in outliers:
        matrix[row, column] = value
    found = kernel.dequantise(quantise(kernel, matrix), "w")
    spans = (matrix.amax(1) - matrix.amin(1)).clamp_min(matrix.abs().amax(1))
    step = spans / (7.5 if kernel is int4 else 127)
    rms = (found - matrix).square().mean(1).sqrt()
    assert bool((rms <= step).all())
