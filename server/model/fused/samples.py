"""Copies of modules with other weights, to compare modules with kernels by no number of a checkpoint."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from server.model.quantised.linear import QuantisedLinear

TOLERANCE = 1e-4  # of the results of copies, relative to the largest


def sample_of(module: nn.Module) -> Any:
    """Return a copy of a module with random weights in float32, and plain linear layers."""
    packed = (each for each in module.modules() if isinstance(each, QuantisedLinear))
    copied = deepcopy(module, {id(each): _plain(each) for each in packed}).float()  # in the place of these
    random = torch.Generator().manual_seed(0)
    for tensor in [*copied.parameters(), *copied.buffers()]:
        if tensor.is_floating_point():
            numbers = torch.randn(tensor.shape, generator=random)
            tensor.copy_(numbers * tensor.shape[-1] ** -0.5 if tensor.ndim > 1 else 1 + 0.1 * numbers)
    return copied


def _plain(linear: QuantisedLinear) -> nn.Linear:
    """Return a linear layer of the same shape."""
    device = next(linear.buffers()).device
    plain = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None, device=device)
    return plain.requires_grad_(False)


def is_near(own: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether a result of kernels is that of a copy but for rounding."""
    return own.shape == other.shape and float((own - other).abs().max()) <= TOLERANCE * float(other.abs().max())
