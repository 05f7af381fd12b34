"""A sum with a factor for each channel is recognised by what its module computes."""

from __future__ import annotations

from collections.abc import Callable

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


@pytest.mark.parametrize(
    "compute",
    [
        lambda hidden, results, gate: hidden + results * gate + 0.1,
        lambda hidden, results, gate: hidden + results * (gate * hidden).sigmoid(),
        lambda hidden, results, gate: hidden.flip(-1) + results * gate,
        lambda hidden, results, gate: (hidden + results * gate).tanh(),
    ],
    ids=["a bias", "a gate by the token", "other channels", "a curve"],
)
def test_other_sums_are_none(compute: Compute) -> None:
    assert ResidualGateParts.find(SomeSum(compute)) is None
