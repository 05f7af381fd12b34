"""A norm is taken for an RMS norm with its own weights and epsilon, or for none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from server.kernels.native.structures.layers import NormKind
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.norms import find_norm, norm_of

SIZE, EPSILON = 48, 1e-6
Compute = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class SomeNorm(nn.Module):
    def __init__(self, weight: torch.Tensor, compute: Compute):
        super().__init__()
        self.weight, self.eps, self._compute = nn.Parameter(weight), EPSILON, compute

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._compute(x.float(), self.weight.float()).to(x.dtype)


def normed(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [0.0, 1.0, 60.0, 200.0])
@pytest.mark.parametrize("plus", [0, 1])
def test_a_weight_to_which_one_is_added_is_told_from_one_that_is_not(
    plus: int, size: float, dtype: torch.dtype
) -> None:
    weight = (torch.randn(SIZE, generator=torch.Generator().manual_seed(0)) * 0.1 + size).to(dtype)
    norm = find_norm(SomeNorm(weight, lambda x, given: normed(x) * (given + plus)))
    assert torch.equal(norm.weight, weight.float() + plus)


@pytest.mark.parametrize("plus", [0, 1])
def test_weights_of_the_rows_before_their_norm_are_told_from_those_after_it(plus: int) -> None:
    weight = torch.linspace(-2, 2, SIZE)
    norm = norm_of(SomeNorm(weight, lambda x, given: normed(x * (given + plus))))
    assert norm is not None
    assert norm.kind is NormKind.INPUT
    assert torch.equal(norm.weight, weight + plus)


@pytest.mark.parametrize(
    "compute",
    [
        lambda x, weight: x / (x.square().mean(-1, keepdim=True).sqrt() + EPSILON) * weight,
        lambda x, weight: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 10 * EPSILON) * weight,
        lambda x, weight: normed(x) * weight * 1.01,
        lambda x, weight: normed(x - x.mean(-1, keepdim=True)) * weight,
    ],
    ids=["epsilon beside the root", "another epsilon", "another factor", "without the mean"],
)
def test_a_norm_that_only_resembles_an_rms_norm_is_none(compute: Compute) -> None:
    with pytest.raises(UnsupportedLayerError, match="SomeNorm is not an RMS norm"):
        find_norm(SomeNorm(torch.ones(SIZE, dtype=torch.bfloat16), compute))


class GatedNorm(nn.Module):
    def __init__(self, activation: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.norm, self._activation = nn.RMSNorm(SIZE, eps=EPSILON), activation
        self.mlp = nn.Sequential(nn.Linear(SIZE, 8, bias=False), nn.SiLU(), nn.Linear(8, SIZE, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.norm(x)
        return y * self._activation(self.mlp(y))


def test_gates_that_are_made_from_a_norms_results_are_known() -> None:
    norm = norm_of(GatedNorm(torch.sigmoid))
    assert norm is not None
    assert norm.gates is not None
    assert norm.gates.down.out_features == 8


def test_gates_by_another_function_are_no_part_of_a_norm() -> None:
    assert norm_of(GatedNorm(torch.tanh)) is None
