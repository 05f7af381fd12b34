"""Matrices rounded to GGUF's types."""

from __future__ import annotations

import gguf
import pytest
import torch

from server.kernels.formats.ggml_types import GGML_TYPES, MXFP4_ROWS, GgmlType

ROUNDED = [kind for kind in GGML_TYPES.values() if kind.can_round]
LARGEST_ERROR = {
    "Q2_K": 0.35,
    "Q3_K": 0.17,
    "Q4": 0.09,
    "Q5": 0.045,
    "Q6_K": 0.02,
    "Q8_0": 0.006,
    "IQ4": 0.085,
    "MXFP4": 0.13,
}
SHAPE = 40, 512


def matrix() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * 0.02


@pytest.mark.parametrize("kind", ROUNDED, ids=lambda kind: kind.name)
def test_the_error_is_that_of_the_type(kind: GgmlType) -> None:
    tensors = kind.quantise("x", matrix())
    assert [(name, each.dtype, tuple(each.shape)) for name, each in tensors.items()] == kind.specs("x", *SHAPE)
    error = (kind.dequantise(tensors, "x") - matrix()).norm() / matrix().norm()
    assert error < next(most for name, most in LARGEST_ERROR.items() if kind.name.startswith(name))


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "MXFP4"])
def test_numbers_of_a_type_stay_as_they_are(name: str) -> None:
    [kind] = [each for each in ROUNDED if each.name == name]
    number = gguf.GGMLQuantizationType[name]
    numbers = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(matrix().numpy(), number), number))
    assert torch.equal(kind.dequantise(kind.quantise("x", numbers), "x"), numbers)


def test_mxfp4_of_safetensors_has_the_numbers_of_that_of_files() -> None:
    [kind] = [each for each in ROUNDED if each.name == "MXFP4"]
    rows = MXFP4_ROWS.quantise("x", matrix())
    assert rows.keys() == {"x_blocks", "x_scales"}
    assert torch.equal(MXFP4_ROWS.dequantise(rows, "x"), kind.dequantise(kind.quantise("x", matrix()), "x"))


@pytest.mark.parametrize("kind", ROUNDED, ids=lambda kind: kind.name)
def test_groups_of_zeros_stay_zero(kind: GgmlType) -> None:
    assert not kind.dequantise(kind.quantise("x", torch.zeros(SHAPE)), "x").any()


@pytest.mark.parametrize("kind", [each for each in ROUNDED if each.name != "MXFP4"], ids=lambda kind: kind.name)
def test_weights_beyond_a_type_are_refused(kind: GgmlType) -> None:
    with pytest.raises(ValueError, match=f"x holds weights that are too large for {kind.name}"):
        kind.quantise("x", matrix() * 1e12)
