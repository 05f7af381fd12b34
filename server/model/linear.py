"""The trunk's linear layers, computed as the kernels do."""

from __future__ import annotations

import torch
from torch import nn

from server.kernels.linear import is_few, linear

MOST_ROWS = 64  # from there on copying the result into the order that modules expect takes what was gained

LEAST_WEIGHTS = 1 << 18


class FewRowsLinear(nn.Linear):
    """A linear layer that is fast for the few rows of a decode."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's name
        rows = input.flatten(0, -2)
        if not is_few(rows, MOST_ROWS):
            return super().forward(input)
        output = linear(rows, self.weight, self.bias)
        return output.contiguous().view(*input.shape[:-1], -1)


def speed_up_linears(model: nn.Module) -> None:
    """Let every plain linear layer of a model be one for few rows, but small ones, whose calls cost more."""
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.numel() >= LEAST_WEIGHTS:
            module.__class__ = FewRowsLinear
