"""Types of GGUF files: nothing is lost in a slot, and products equal those with the dequantised matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from torch import nn

from server.kernels.format_table import format_of
from server.kernels.formats.ggml_types import GGML_TYPES, GgmlType
from server.kernels.native import library
from server.kernels.native.available import availability
from server.model.quantised.linear import NAME, QuantisedLinear
from tests.server.kernels.formats.ggml_matrices import NUMBERS, QUANTISED, random_rows

EACH = pytest.mark.parametrize("name", QUANTISED)
INPUTS = 512
SHARES = {"IQ4_XS": 138 / 136}  # the bytes of a slot, by those of the file; others take as many


def kind_of(name: str) -> GgmlType:
    return GGML_TYPES[NUMBERS[name]]


def dequantised(name: str, raw: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(quants.dequantize(raw.numpy(), GGMLQuantizationType[name]))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.flatten().view(torch.uint8)


def test_numbers_and_sizes_are_those_of_ggml() -> None:
    known = {each: GGMLQuantizationType(each) for each in GGML_TYPES}
    assert {number: kind.name for number, kind in GGML_TYPES.items()} == {n: each.name for n, each in known.items()}
    sizes = {number: (kind.inputs, kind.block_bytes) for number, kind in GGML_TYPES.items()}
    assert sizes == {number: GGML_QUANT_SIZES[each] for number, each in known.items()}


@pytest.mark.parametrize("out_features", [32, 21])
@EACH
def test_a_slot_holds_the_bits_of_the_file(name: str, out_features: int) -> None:
    kind, raw = kind_of(name), random_rows(name, out_features, INPUTS)
    tensors = kind.repack("w", raw, INPUTS)
    assert torch.equal(kind.dequantise(tensors, "w"), dequantised(name, raw))


@pytest.mark.parametrize("out_features", [32, 21])
@EACH
def test_repacked_tensors_are_those_of_the_specs(name: str, out_features: int) -> None:
    kind = kind_of(name)
    tensors = kind.repack("w", random_rows(name, out_features, INPUTS), INPUTS)
    found = [(key, each.dtype, tuple(each.shape)) for key, each in tensors.items()]
    assert found == kind.specs("w", out_features, INPUTS)
    assert format_of(tensors, "w") is kind.format


@pytest.mark.skipif(not availability().runnable, reason="the native kernels were not built")
@pytest.mark.parametrize("out_features", [32, 21])
@EACH
def test_native_repacking_writes_the_bits_that_torch_does(
    name: str, out_features: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, raw = kind_of(name), random_rows(name, out_features, INPUTS)
    found = kind.repack("w", raw, INPUTS)
    monkeypatch.setattr(library, "is_available", lambda: False)
    wanted = kind.repack("w", raw, INPUTS)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(bits(found[key]), bits(wanted[key])) for key in wanted)


@EACH
def test_a_matrix_is_repacked_into_memory_that_exists(name: str) -> None:
    kind, raw = kind_of(name), random_rows(name, 21, INPUTS)
    wanted = kind.repack("w", raw, INPUTS)
    for key, tensor in wanted.items():  # each alone
        own = torch.zeros_like(tensor)
        kind.repack("w", raw, INPUTS, {key: own})
        assert torch.equal(bits(own), bits(tensor))


@EACH
def test_a_slot_takes_no_more_bytes_than_the_file(name: str) -> None:
    raw = random_rows(name, 32, INPUTS)
    own = sum(each.nbytes for each in kind_of(name).repack("w", raw, INPUTS).values())
    assert own == raw.nbytes * SHARES.get(name, 1)


@pytest.mark.parametrize(("number", "dtype"), [(0, np.float32), (1, np.float16)])
def test_plain_types_are_views(number: int, dtype: type[np.generic]) -> None:
    numbers = np.arange(12, dtype=dtype).reshape(3, 4)
    raw = torch.from_numpy(numbers.view(np.uint8).copy())
    tensors = GGML_TYPES[number].repack("w", raw, 4)
    assert torch.equal(tensors["w"], torch.from_numpy(numbers))
    assert tensors["w"].data_ptr() == raw.data_ptr()


def test_incomplete_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="rows of 288 numbers are no multiple of 256, as Q4_K needs"):
        kind_of("Q4_K").row_bytes(288)


def test_rows_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="512 numbers of Q4_K are not 144 bytes"):
        kind_of("Q4_K").repack("w", random_rows("Q4_K", 4, 256), 512)


def test_memory_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"w_q4_k must be torch.uint8 \[1, 8, 4, 16, 4\]"):
        kind_of("Q4_K").repack("w", random_rows("Q4_K", 4, 256), 256, {"w_q4_k": torch.empty(1, dtype=torch.uint8)})


def test_a_nan_scale_of_nvfp4_means_zero() -> None:
    raw = random_rows("NVFP4", 4, 64)
    raw[1, 2] = 0x7F
    assert torch.equal(kind_of("NVFP4").dequantise_rows(raw, 64), dequantised("NVFP4", raw))


@EACH
def test_a_linear_layer_multiplies_what_the_file_has(name: str) -> None:
    with torch.device("meta"):
        linear = QuantisedLinear(nn.Linear(INPUTS, 21, bias=False), kind_of(name))
    raw = random_rows(name, 21, INPUTS)
    linear.fill(kind_of(name).repack(NAME, raw, INPUTS))
    rows = torch.randn((3, INPUTS), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(linear(rows), rows @ dequantised(name, raw).T, rtol=1e-4, atol=1e-3)


@EACH
def test_some_rows_of_a_linear_layer_equal_those_of_the_file(name: str) -> None:
    with torch.device("meta"):
        linear = QuantisedLinear(nn.Linear(INPUTS, 53, bias=False), kind_of(name))
    raw = random_rows(name, 53, INPUTS)
    linear.fill(kind_of(name).repack(NAME, raw, INPUTS))
    assert torch.equal(linear.rows(16, 37), dequantised(name, raw)[16:])
