"""A tensor of a file is a copy of a module's weights if only rounding tells them apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from expert_store.catalog import TensorSource
from expert_store.io.safetensors_index import read_index
from server.kernels.formats import block_int4, block_int8
from server.kernels.formats.blocks import BlockFormat
from server.model.lora import base_copies
from server.model.lora.base_copies import is_copy, is_zero
from server.model.quantised.linear import NAME, QuantisedLinear

ROWS, COLUMNS = 70, 40  # several chunks, and no complete blocks and groups


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_copies, "CHUNK_WEIGHTS", 32 * COLUMNS)


def stored(folder: Path, tensor: torch.Tensor) -> TensorSource:
    save_file({"x": tensor}, folder / "x.safetensors")
    return read_index([folder / "x.safetensors"])["x"]


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounded_weights_are_a_copy(weight: torch.Tensor, dtype: torch.dtype, tmp_path: Path) -> None:
    module = nn.Embedding.from_pretrained(weight)
    assert is_copy(stored(tmp_path, weight.to(dtype)), module)


def test_one_other_number_in_the_last_row_is_no_copy(weight: torch.Tensor, tmp_path: Path) -> None:
    module = nn.Embedding.from_pretrained(weight.clone())
    weight[-1, -1] += 0.1
    assert not is_copy(stored(tmp_path, weight), module)


@pytest.mark.parametrize("block_format", [block_int8, block_int4])
def test_a_quantised_matrix_has_the_copy_that_it_was_made_of(
    weight: torch.Tensor, block_format: BlockFormat, tmp_path: Path
) -> None:
    with torch.device("meta"):
        original = nn.Linear(COLUMNS, ROWS, bias=False)
    module = QuantisedLinear(original, block_format)
    module.fill(block_format.quantise(NAME, weight))
    assert is_copy(stored(tmp_path, weight), module)
    assert not is_copy(stored(tmp_path, weight.flip(0)), module)


def test_a_number_in_the_last_row_is_not_zero(tmp_path: Path) -> None:
    tensor = torch.zeros(ROWS, COLUMNS)
    assert is_zero(stored(tmp_path, tensor))
    tensor[-1, 3] = 1e-30
    assert not is_zero(stored(tmp_path, tensor))
