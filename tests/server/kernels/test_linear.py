"""Products with few rows equal those of torch."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from server.kernels.compute_pool import ComputePool
from server.kernels.linear import MOST_ROWS, linear
from server.model.modules.linear import LEAST_SHARED_BYTES, LEAST_WEIGHTS, FastLinear, speed_up_linears


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("rows", [0, 1, 2, 17, MOST_ROWS, MOST_ROWS + 1])
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_product_is_that_of_torch(dtype: torch.dtype, rows: int, has_bias: bool) -> None:
    torch.manual_seed(rows)
    inputs, matrix = torch.randn(rows, 96).to(dtype), torch.randn(40, 96).to(dtype)
    bias = torch.randn(40).to(dtype) if has_bias else None
    expected = F.linear(inputs.float(), matrix.float(), None if bias is None else bias.float())
    output = linear(inputs, matrix, bias)
    assert output.dtype == dtype
    torch.testing.assert_close(output.float(), expected, rtol=0.02, atol=0.1 if dtype == torch.bfloat16 else 0.02)


@pytest.mark.slow
@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (2, 3), (1, 80), (1, 601), (1, 0)])
@pytest.mark.parametrize("num_outputs", [LEAST_WEIGHTS // 512, LEAST_SHARED_BYTES // 1024 + 1])
def test_linear_layers_keep_shape_order_and_result(
    num_threads: int, dtype: torch.dtype, shape: tuple[int, int], num_outputs: int
) -> None:
    torch.manual_seed(1)
    layer = nn.Linear(512, num_outputs, dtype=dtype)
    inputs = torch.randn(*shape, 512).to(dtype)
    with torch.inference_mode():
        expected = layer(inputs)
        speed_up_linears(layer, ComputePool(num_threads))
        output = layer(inputs)
    assert type(layer) is FastLinear
    assert output.is_contiguous()
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(output, expected, rtol=tolerance, atol=tolerance)


def test_small_layers_and_those_with_their_own_forward_are_not_replaced() -> None:
    class Scaled(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(8, 8), Scaled(1024, 1024))
    speed_up_linears(model, ComputePool(1))
    assert [type(module) for module in model] == [nn.Linear, Scaled]
