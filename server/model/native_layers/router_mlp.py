"""Finds the parts of a router whose matrix takes the results of an MLP, which adds those of the layer before (ZAYA)."""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import addressof
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional as F

from server.kernels.native.structures.adapters import LoraPlace
from server.kernels.native.structures.layers import RouterMlp
from server.model.blocks.capture import LayerCapture
from server.model.blocks.kept_tensors import KeptTensors
from server.model.blocks.linears import LINEARS, Linear, matrix_of
from server.model.blocks.norms import Norm, norm_of
from server.model.experts.router import RouterWeights

DOWN, MLP, NORM = "down_proj", "router_mlp", "norm"  # names of modules of a router; the norm is one of its MLP
INNER, MATRIX = ("fc1", "fc2"), "out_proj"  # the same of its MLP
CARRIED, CORRECTION = "router_states_scale", "balancing_biases"  # names of a parameter and a buffer of a router


@dataclass(frozen=True)
class RouterMlpParts:
    """The layers before the matrix of a router."""

    module: nn.Module  # the router
    down: Linear
    norm: Norm
    first: Linear
    second: Linear
    matrix: nn.Linear
    carried: torch.Tensor | None  # (width,), factors of what the layer before carries

    @classmethod
    def find(cls, module: Any) -> Self | None:
        """Return the parts of a router; None if it has others."""
        mlp = getattr(module, MLP, None)
        linears = [getattr(module, DOWN, None), *(getattr(mlp, name, None) for name in INNER)]
        matrix, norm = getattr(mlp, MATRIX, None), getattr(mlp, NORM, None)
        if not all(isinstance(each, LINEARS) and each.bias is not None for each in linears):
            return None
        if not isinstance(matrix, nn.Linear) or matrix.bias is not None or not isinstance(norm, nn.Module):
            return None
        found, (down, first, second) = norm_of(norm), linears
        if found is None:
            return None
        return cls(module, down, found, first, second, matrix, getattr(module, CARRIED, None))

    @property
    def correction(self) -> torch.Tensor | None:
        """The numbers that are added to scores for the choice."""
        found: torch.Tensor | None = getattr(self.module, CORRECTION, None)
        return found

    @property
    def width(self) -> int:
        """Numbers of a row that it carries to the next layer."""
        return self.down.out_features

    def rows(self, given: torch.Tensor, carried: torch.Tensor | None = None) -> torch.Tensor:
        """Return the rows that the matrix takes, in float64.

        Args:
            given: rows that the router takes, ``(tokens, hidden)``.
            carried: by the layer before, ``(tokens, width)``.
        """
        rows = _linear(self.down, given.double())
        if carried is not None and self.carried is not None:
            rows = rows + carried.double() * self.carried.double()
        rows = rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + self.norm.epsilon) * self.norm.weight.double()
        for linear in (self.first, self.second):
            rows = F.gelu(_linear(linear, rows))
        return rows

    def carried_in(self, captured: LayerCapture) -> torch.Tensor | None:
        """Return the rows that the layer before carried to a call of the layer, float32 ``(tokens, width)``."""
        for each in captured.calls:
            if any(module is self.module for module in each.module.modules()):
                rows = [value for value in (*each.call.args, *each.call.kwargs.values()) if value is not None]
                return rows[1].flatten(0, -2).float().clone() if len(rows) > 1 else None
        return None

    def places(self) -> Mapping[Linear, LoraPlace]:
        """Return the places that adapters may add to, by layer."""
        places = LoraPlace.ROUTER_DOWN, LoraPlace.ROUTER_FIRST, LoraPlace.ROUTER_SECOND
        return dict(zip((self.down, self.first, self.second), places, strict=True))

    def build(self, kept: KeptTensors) -> int:
        """Describe it to the kernels, and return the address.

        Args:
            kept: keeps its numbers.
        """
        spec = RouterMlp(carried=kept.keep(self.carried), norm=kept.norm(self.norm))
        linears = {"down": self.down, "first": self.first, "second": self.second}
        for name, linear in linears.items():
            setattr(spec, name, matrix_of(linear))
            setattr(spec, f"{name}_bias", kept.keep(linear.bias))
        return addressof(kept.own(spec))


def _linear(linear: Any, rows: torch.Tensor) -> torch.Tensor:
    return F.linear(rows, linear.weight.double(), linear.bias.double())


def weights_of(parts: RouterMlpParts, name: str, num_experts: int) -> RouterWeights:
    """Return the matrix of a router, and what is added to its scores.

    Args:
        name: of the router in the model.
        num_experts: of its layer; other rows stand for no expert.
    """
    names, correction = {"weight": f"{name}.{MLP}.{MATRIX}.weight"}, parts.correction
    if correction is not None:
        names["correction"] = f"{name}.{CORRECTION}"
    weight = parts.matrix.weight
    return RouterWeights(weight, None, correction, F.softmax, names, num_skips=len(weight) - num_experts)
