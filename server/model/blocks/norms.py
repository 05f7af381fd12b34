"""Finds RMS norms by what they compute."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn

from server.model.blocks.errors import UnsupportedLayerError

EPSILONS = ("variance_epsilon", "eps", "epsilon")
TOLERANCE = 1e-5  # error of a norm in float32, relative to its largest weight
SIZES = (1.0, 1e-2, 1e-3)  # of samples for norms: the smaller ones show how the epsilon is added


@dataclass(frozen=True)
class Norm:
    """An RMS norm."""

    module: nn.Module
    weight: torch.Tensor  # float32 (size,), multiplied with the normed values
    epsilon: float


def find_norm(module: nn.Module) -> Norm:
    """Return a module as an RMS norm.

    Raises:
        UnsupportedLayerError: the module computes something else.
    """
    norm = norm_of(module)
    if norm is None:
        raise UnsupportedLayerError(f"{type(module).__name__} is not an RMS norm")
    return norm


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is an RMS norm."""
    return norm_of(module) is not None


def norm_of(module: nn.Module) -> Norm | None:
    """Return a module as an RMS norm; None if it computes something else."""
    weight = getattr(module, "weight", None)
    epsilon = next((getattr(module, name) for name in EPSILONS if isinstance(getattr(module, name, None), float)), None)
    if (
        epsilon is None
        or not isinstance(weight, torch.Tensor)
        or weight.ndim != 1
        or len(list(module.parameters())) > 1
    ):
        return None
    sample = torch.linspace(-3, 2, len(weight)).expand(len(SIZES), -1) * torch.tensor(SIZES).unsqueeze(1)
    normed = sample * torch.rsqrt(sample.square().mean(1, keepdim=True) + epsilon)
    with torch.inference_mode():
        found = deepcopy(module).float()(sample)
    factors = weight.detach().float(), weight.detach().float() + 1
    errors = [float((found - normed * factor).abs().max() / factor.abs().max().clamp_min(1e-30)) for factor in factors]
    best = min(range(len(factors)), key=errors.__getitem__)
    return Norm(module, factors[best].contiguous(), epsilon) if errors[best] <= TOLERANCE else None
