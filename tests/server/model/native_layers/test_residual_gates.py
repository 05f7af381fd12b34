"""A sum with a factor for each channel is recognised by what its module computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from server.model.blocks.residual_gates import ResidualGateParts

SIZE = 12
Compute = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class SomeSum(nn.Module):
    def __init__(self, compute: Compute):
        super().__init__()
        self.gate, self._compute = nn.Parameter(torch.linspace(-1, 1, SIZE)), compute

    def forward(self, hidden: torch.Tensor, results: torch.Tensor) -> torch.Tensor:
        return self._compute(hidden, results, self.gate)


def test_factors_are_those_that_the_module_computes_from_its_parameter() -> None:
    module = SomeSum(lambda hidden, results, gate: hidden * (1 - gate.square()) + results * gate.sigmoid())
    found = ResidualGateParts.find(module)
    assert found is not None
    torch.testing.assert_close(found.kept, 1 - module.gate.detach().square())
    torch.testing.assert_close(found.added, module.gate.detach().sigmoid())


def test_a_bias_is_what_the_module_makes_of_zeros() -> None:
    found = ResidualGateParts.find(SomeSum(lambda hidden, results, gate: (hidden + 0.1) * 2 + results * gate))
    assert found is not None
    assert found.bias is not None
    torch.testing.assert_close(found.bias, torch.full((SIZE,), 0.2))


@pytest.mark.parametrize("first", ["residual", "hidden"])
def test_the_argument_with_the_name_of_the_residual_stream_is_kept(first: str) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Parameter(torch.ones(SIZE))

    def of_residual(self: Any, residual: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return residual * self.gate * 3 + hidden

    def of_hidden(self: Any, hidden: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return of_residual(self, residual, hidden)

    module = type("Sum", (Named,), {"forward": of_residual if first == "residual" else of_hidden})()
    found = ResidualGateParts.find(module)
    assert found is not None
    assert (float(found.kept[0]), found.results) == (3.0, int(first == "residual"))


@pytest.mark.parametrize(
    "compute",
    [
        lambda hidden, results, gate: hidden + results * (gate * hidden).sigmoid(),
        lambda hidden, results, gate: hidden.flip(-1) + results * gate,
        lambda hidden, results, gate: (hidden + results * gate).tanh(),
    ],
    ids=["a gate by the token", "other channels", "a curve"],
)
def test_other_sums_are_none(compute: Compute) -> None:
    assert ResidualGateParts.find(SomeSum(compute)) is None
