"""Finds norms by what they compute."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from server.kernels.native.structures.layers import NormKind
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.linears import LINEARS, Linear

EPSILONS = ("variance_epsilon", "eps", "epsilon")
TOLERANCE = 1e-5  # error of a norm in float32, relative to its largest weight
GATED = ("norm", "mlp")  # parts of a norm with gates
SIZES = (1.0, 1e-2, 1e-3)  # of samples for norms: the smaller ones show how the epsilon is added


@dataclass(frozen=True)
class NormGates:
    """The linear layers whose result, with a SiLU between them, gives gates of a norm's results by a sigmoid."""

    down: Linear
    up: Linear


@dataclass(frozen=True)
class Norm:
    """A norm: RMS, or of the numbers less their mean, or RMS of weighted numbers."""

    module: nn.Module
    weight: torch.Tensor  # float32 (size,), multiplied with the normed values, or before; ones if the module has none
    epsilon: float
    kind: NormKind = NormKind.RMS
    bias: torch.Tensor | None = None  # float32 (size,)
    gates: NormGates | None = None


def find_norm(module: nn.Module, size: int | None = None) -> Norm:
    """Return a module as an RMS norm.

    Args:
        module: of the model.
        size: of its rows, for one without weights.

    Raises:
        UnsupportedLayerError: the module computes something else.
    """
    norm = norm_of(module, size)
    if norm is None or norm.kind is not NormKind.RMS:
        raise UnsupportedLayerError(f"{type(module).__name__} is not an RMS norm")
    return norm


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is a norm with weights."""
    return norm_of(module) is not None


def norm_of(module: nn.Module, size: int | None = None) -> Norm | None:
    """Return a module as a norm; None if it computes something else.

    Args:
        module: of the model.
        size: of its rows, for one without weights, which is no norm otherwise.
    """
    if any(module.children()):
        return _gated_norm_of(module)
    own = dict(module.named_parameters())
    weight: torch.Tensor | None = own.pop("weight", None)
    bias = own.pop("bias", None)
    epsilon = next((getattr(module, name) for name in EPSILONS if isinstance(getattr(module, name, None), float)), None)
    if epsilon is None or own:
        return None
    if weight is None and size is not None and bias is None:
        weight = torch.ones(size)
    if weight is None or weight.ndim != 1 or (bias is not None and bias.shape != weight.shape):
        return None
    size = len(weight)
    factor, added = torch.linspace(0.5, 1.5, size), None if bias is None else torch.linspace(-0.5, 0.5, size).flip(0)
    sample = torch.linspace(-3, 2, size).expand(len(SIZES), -1) * torch.tensor(SIZES).unsqueeze(1)
    try:
        with torch.inference_mode():
            found = _with_weights(module, factor, added)(sample) - (0 if added is None else added)
    except RuntimeError:
        return None  # it takes rows of another shape, such as an image's
    has_weight = getattr(module, "weight", None) is not None
    candidates = []
    kinds = (NormKind.RMS, NormKind.LAYER, NormKind.INPUT) if has_weight else (NormKind.RMS, NormKind.LAYER)
    for kind, offset in product(kinds, (0, 1) if has_weight else (0,)):
        by = factor + offset if has_weight else torch.ones(size)
        rows = {NormKind.LAYER: sample - sample.mean(1, keepdim=True), NormKind.INPUT: sample * by}.get(kind, sample)
        normed = rows * torch.rsqrt(rows.square().mean(1, keepdim=True) + epsilon)
        wanted = normed if kind is NormKind.INPUT else normed * by
        candidates.append((float((found - wanted).abs().max() / by.abs().max()), kind, offset))
    error, kind, offset = min(candidates, key=lambda each: each[0])
    if not error <= TOLERANCE:
        return None
    own_bias = None if bias is None else bias.detach().float().cpu().contiguous()
    return Norm(module, (weight.detach().float().cpu() + offset).contiguous(), epsilon, kind, own_bias)


def _with_weights(module: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
    """Return a copy of a norm with other weights, in float32 on the CPU."""
    copied = deepcopy(module).to("cpu", torch.float32)
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and isinstance(getattr(copied, name, None), nn.Parameter):
            setattr(copied, name, nn.Parameter(value, requires_grad=False))
    return copied


def _gated_norm_of(module: nn.Module) -> Norm | None:
    """Return a module of a norm and an MLP that gates its results (A.X K2); None if it computes something else."""
    norm, mlp = (getattr(module, name, None) for name in GATED)
    if not isinstance(norm, nn.Module) or not isinstance(mlp, nn.Module) or len([*module.children()]) != len(GATED):
        return None
    found = norm_of(norm)
    linears = [each for each in mlp.children() if isinstance(each, LINEARS)]
    if found is None or len(linears) != 2 or any(each.bias is not None for each in linears):  # noqa: PLR2004
        return None
    down, up = linears
    if isinstance(down, nn.Linear) and isinstance(up, nn.Linear) and not _computes_gates(module):
        return None
    return replace(found, module=module, gates=NormGates(down, up))


def _computes_gates(module: nn.Module) -> bool:
    """Return whether a copy of a module with random weights multiplies its normed rows by gates made from them."""
    copied, random = deepcopy(module).to("cpu", torch.float32), torch.Generator().manual_seed(0)
    own: Any = copied
    with torch.inference_mode():
        for linear in (each for each in own.mlp.children() if isinstance(each, nn.Linear)):
            linear.weight.normal_(0, linear.in_features**-0.5, generator=random)
        down, up = (each for each in own.mlp.children() if isinstance(each, nn.Linear))
        rows = torch.linspace(-3, 2, down.in_features).expand(2, -1)
        normed = own.norm(rows)
        wanted = normed * torch.sigmoid(up(F.silu(down(normed))))
        return float((copied(rows) - wanted).norm()) <= TOLERANCE * float(wanted.norm())
