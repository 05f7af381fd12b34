"""Within ``batch_invariant()`` a row gives the same bits at any place and whatever the other rows are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from server.kernels import invariant_matmul
from server.kernels.batch_invariant import batch_invariant, is_batch_invariant
from server.kernels.formats import block_int4, block_int8, channel_int8, group_int4
from tests.old_packs import int4_matrix, int8_matrix
from tests.server.kernels.rows import cancelling, rows_with, threads

SHAPES = [(1, 32), (1, 2048), (48, 32), (384, 192), (512, 1024), (64, 2048), (1000, 129), (7, 100), (1, 5), (33, 1)]
COUNTS = (1, 2, 15, 16, 17, 33, 100, 300)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
THREADS = pytest.mark.parametrize("num_threads", [1, 2])


def assert_invariant(function: Callable[[torch.Tensor], torch.Tensor], row: torch.Tensor) -> None:
    """``function`` takes ``(rows, ...)`` and gives one result a row."""
    with batch_invariant():
        wanted = function(row.unsqueeze(0))[0]
        for count in COUNTS:
            for place in {0, count // 3, count - 1}:
                found = function(rows_with(row, count, place, seed=count))[place]
                assert torch.equal(found, wanted), f"row {place} of {count}"


def matrix_and_row(out_features: int, in_features: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    matrix, row = cancelling(out_features, in_features)
    return (matrix / 7).to(dtype), (row / 49).to(dtype)


@pytest.mark.slow
@DTYPES
@THREADS
@pytest.mark.parametrize("shape", SHAPES)
def test_linear_layers(shape: tuple[int, int], dtype: torch.dtype, num_threads: int) -> None:
    matrix, row = matrix_and_row(*shape, dtype)
    bias = torch.linspace(-1, 1, shape[0]).to(dtype)
    transposed = matrix.mT.contiguous().mT
    with threads(num_threads):
        assert_invariant(lambda rows: F.linear(rows, matrix), row)
        assert_invariant(lambda rows: F.linear(rows, matrix, bias), row)
        assert_invariant(lambda rows: F.linear(rows, transposed), row)


@pytest.mark.slow
@DTYPES
def test_products_by_any_name(dtype: torch.dtype) -> None:
    matrix, row = matrix_and_row(192, 384, dtype)
    weight, bias = matrix.mT.contiguous(), torch.linspace(-1, 1, 192).to(dtype)
    stacked = torch.stack((weight, -weight))
    functions: list[Callable[[torch.Tensor], torch.Tensor]] = [
        lambda rows: rows @ weight,
        lambda rows: rows.matmul(weight),
        lambda rows: rows.mm(weight),
        lambda rows: torch.matmul(rows.unsqueeze(0), weight)[0],
        lambda rows: torch.addmm(bias, rows, weight),
        lambda rows: torch.bmm(rows.expand(2, *rows.shape), stacked).transpose(0, 1),
        lambda rows: (rows @ stacked).transpose(0, 1),
    ]
    for function in functions:
        assert_invariant(function, row)
        rows = rows_with(row, 20, 3)
        with batch_invariant():
            found = function(rows)
        torch.testing.assert_close(found.float(), function(rows).float(), rtol=0.02, atol=0.02 * 127)


@pytest.mark.slow
@DTYPES
@THREADS
@pytest.mark.parametrize("width", [1, 24, 64, 97, 1000])
@pytest.mark.parametrize(
    "function",
    [F.silu, F.gelu, F.mish, F.elu, F.softplus, F.logsigmoid, torch.sigmoid, nn.GELU(approximate="tanh"), torch.expm1],
    ids=lambda function: getattr(function, "__name__", "gelu_tanh"),
)
def test_activations(
    function: Callable[[torch.Tensor], torch.Tensor], width: int, dtype: torch.dtype, num_threads: int
) -> None:
    row = (torch.randn(width, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    with threads(num_threads):
        assert_invariant(function, row)
        assert_invariant(lambda rows: function(torch.cat((rows, rows), 1)[:, :width]), row)


@pytest.mark.slow
@DTYPES
@THREADS
@pytest.mark.parametrize("width", [5, 64, 1000])
def test_norms_scores_and_sums(width: int, dtype: torch.dtype, num_threads: int) -> None:
    row = torch.randn(width, generator=torch.Generator().manual_seed(0)).to(dtype)
    functions: list[Callable[[torch.Tensor], torch.Tensor]] = [
        lambda rows: rows * torch.rsqrt(rows.float().pow(2).mean(-1, keepdim=True) + 1e-6).to(dtype),
        lambda rows: torch.rsqrt(rows.abs() + 1),
        lambda rows: (rows.abs() + 1) ** -0.5,
        lambda rows: (rows.abs() + 1).pow(0.3),
        lambda rows: F.layer_norm(rows, rows.shape[-1:]),
        lambda rows: F.rms_norm(rows, rows.shape[-1:]),
        lambda rows: rows.softmax(-1),
        lambda rows: rows.sum(-1, keepdim=True),
        lambda rows: rows.cumsum(-1),
        lambda rows: torch.cos(rows * 100),
        torch.tanh,
        torch.exp,
        lambda rows: rows.topk(3).values,
        lambda rows: torch.stack([rows * scale for scale in range(5)], 1).sum(1),
    ]
    with threads(num_threads):
        for function in functions:
            assert_invariant(function, row)


@pytest.mark.slow
@THREADS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(192, 384), (128, 96), (100, 130)])
def test_quantised_matrices(shape: tuple[int, int], dtype: torch.dtype, num_threads: int) -> None:
    matrix, row = matrix_and_row(*shape, dtype)
    bias = torch.linspace(-1, 1, shape[0]).to(dtype)
    tensors = [
        (block_int8, block_int8.quantise("w", matrix.float())),
        (block_int4, block_int4.quantise("w", matrix.float())),
        (channel_int8, int8_matrix("w", matrix.float())),
        *((group_int4, int4_matrix("w", matrix.float(), block)) for block in group_int4.BLOCKS),
    ]
    with threads(num_threads):
        for kernel, weights in tensors:
            assert_invariant(partial(kernel.project, weights, "w", bias=bias), row)


def test_results_are_near_those_of_torch() -> None:
    rows = torch.randn((50, 192), generator=torch.Generator().manual_seed(0))
    layer = nn.Sequential(nn.Linear(192, 100), nn.SiLU(), nn.Linear(100, 30))
    with torch.inference_mode():
        usual = layer(rows)
        with batch_invariant():
            torch.testing.assert_close(layer(rows), usual)


def test_the_mode_ends_with_the_context() -> None:
    assert not is_batch_invariant()
    with batch_invariant():
        assert is_batch_invariant()
    assert not is_batch_invariant()


def test_no_rows_give_no_rows() -> None:
    with batch_invariant():
        assert F.linear(torch.zeros(0, 8), torch.zeros(3, 8)).shape == (0, 3)
        assert F.silu(torch.zeros(0, 8)).shape == (0, 8)


def test_tiles_whose_places_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = invariant_matmul._by_tile

    def depends_on_place(matrix: torch.Tensor, rows: torch.Tensor, size: int) -> torch.Tensor:
        return plain(matrix, rows, size) + torch.arange(size).unsqueeze(1)

    monkeypatch.setattr(invariant_matmul, "_by_tile", depends_on_place)
    with pytest.raises(
        invariant_matmul.NotInvariantError, match=r"\[11, 13\] in torch.float32 depends on the place of a row"
    ):
        invariant_matmul.product(torch.zeros(11, 13), torch.zeros(1, 13))
    with pytest.raises(
        invariant_matmul.NotInvariantError, match=r"\[11, 17\] in torch.float32 depends on the place of a row"
    ):
        invariant_matmul.batched_matmul(torch.zeros(3, 11, 17), torch.zeros(3, 1, 17))


def test_matrices_that_differ_in_a_batch_are_multiplied_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, matrices, rows = invariant_matmul._by_tile, torch.randn(5, 12, 19), torch.randn(5, 3, 19)
    wanted = rows @ matrices.mT
    monkeypatch.setattr(invariant_matmul, "_by_tile", lambda m, r, size: plain(m, r, size) + (m.shape[0] - 1))
    torch.testing.assert_close(invariant_matmul.batched_matmul(matrices, rows), wanted)
