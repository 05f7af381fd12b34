"""Rows of tables that stay quantised are those of the file."""

from __future__ import annotations

from array import array

import pytest
import torch
from gguf import GGMLQuantizationType, quants
from torch import nn

from server.kernels.formats.ggml_types import GGML_TYPES
from server.kernels.native.library import Kernels
from server.kernels.native.linear import plain_matrix
from server.model.quantised.embedding import quantise_embedding
from server.model.quantised.linear import NAME, QuantisedMatrix
from tests.server.kernels.formats.ggml_matrices import NUMBERS, QUANTISED, random_rows
from tests.server.kernels.native.conftest import kernels, level  # noqa: F401  fixtures

TOKENS, SIZE = 37, 512
PLACES = [36, 0, 17, 17, *range(30), 16]


def table_of(name: str) -> tuple[QuantisedMatrix, torch.Tensor]:
    """Return a table of a type, and its numbers."""
    kind, raw = GGML_TYPES[NUMBERS[name]], random_rows(name, TOKENS, SIZE)
    with torch.device("meta"):
        table = QuantisedMatrix(TOKENS, SIZE, kind, torch.float32)
    table.fill(kind.repack(NAME, raw, SIZE))
    return table, torch.from_numpy(quants.dequantize(raw.numpy(), GGMLQuantizationType[name]))


@pytest.mark.parametrize("name", QUANTISED)
def test_rows_have_the_bits_of_the_file(name: str) -> None:
    table, numbers = table_of(name)
    assert torch.equal(table.rows_at(torch.tensor(PLACES)), numbers[PLACES])


@pytest.mark.parametrize("name", QUANTISED)
def test_the_kernels_read_rows_with_the_bits_of_the_file(name: str, kernels: Kernels) -> None:  # noqa: F811
    table, numbers = table_of(name)
    table.kernels = kernels
    assert torch.equal(table.rows_at(torch.tensor(PLACES)), numbers[PLACES])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_kernels_read_rows_of_plain_tables(dtype: torch.dtype, kernels: Kernels) -> None:  # noqa: F811
    numbers, places = torch.randn(TOKENS, 35).to(dtype), array("i", PLACES)
    matrix, found = plain_matrix(numbers), torch.empty(len(PLACES), 35)
    assert matrix is not None
    assert kernels.read_rows(matrix, places.buffer_info()[0], len(places), found.data_ptr())
    assert torch.equal(found, numbers[PLACES].float())


@pytest.mark.parametrize("place", [-1, TOKENS])
def test_a_row_that_does_not_exist_is_refused(place: int, kernels: Kernels) -> None:  # noqa: F811
    table, _ = table_of("Q4_K")
    table.kernels = kernels
    with pytest.raises(IndexError, match="a row is not one of 37"):
        table.rows_at(torch.tensor([place]))


def test_an_embedding_of_a_class_of_its_own_keeps_what_that_does() -> None:
    class Doubled(nn.Embedding):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's name
            return super().forward(input) * torch.tensor(2.0).to(self.weight.dtype)

    kind, raw = GGML_TYPES[NUMBERS["Q6_K"]], random_rows("Q6_K", TOKENS, SIZE)
    with torch.device("meta"):
        module = Doubled(TOKENS, SIZE, dtype=torch.bfloat16)
        table = quantise_embedding(module, kind)
    table.fill(kind.repack(NAME, raw, SIZE))
    numbers = torch.from_numpy(quants.dequantize(raw.numpy(), GGMLQuantizationType.Q6_K))
    assert torch.equal(module(torch.tensor([[3, 36]])), 2 * numbers[[3, 36]].bfloat16().unsqueeze(0))
