"""Finds the parts of a router that takes other rows than its experts, and norms them itself (Gemma 4)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.norms import Norm, norm_of
from server.model.experts.router import RouterWeights

FACTOR = "scalar_root_size"  # attribute: of the normed rows


@dataclass(frozen=True)
class OwnRouter:
    """A router with the norm of its rows."""

    weights: RouterWeights
    norm: Norm
    expert_scales: torch.Tensor | None  # (experts,), factors of their weights

    def rows(self, given: torch.Tensor) -> torch.Tensor:
        """Return normed rows in float64."""
        rows = given.double()
        scale = torch.rsqrt(rows.square().mean(-1, keepdim=True) + self.norm.epsilon)
        return rows * scale * self.norm.weight.double()


def find_own_router(module: Any, num_experts: int, top_k: int) -> OwnRouter:
    """Return the parts of a router: a norm, a linear layer, and perhaps factors of rows and of experts.

    Raises:
        UnsupportedLayerError: it has others.
    """
    linears = [each for each in module.children() if isinstance(each, nn.Linear)]
    if len(linears) != 1 or linears[0].bias is not None or linears[0].out_features != num_experts:
        raise UnsupportedLayerError("its router was not found")
    size = linears[0].in_features
    norms = [found for each in module.children() if (found := norm_of(each, size)) is not None]
    left = {value.numel(): value.detach().cpu() for _, value in module.named_parameters(recurse=False)}
    if len(norms) != 1 or not left.keys() <= {size, num_experts} or size == num_experts:
        raise UnsupportedLayerError("its router has parts of unknown use")
    factor = float(getattr(module, FACTOR, 1.0))
    by = left[size].float() * factor if size in left else torch.tensor(factor)
    norm = replace(norms[0], weight=norms[0].weight * by)
    weights = RouterWeights(linears[0].weight, None, None, F.softmax, top_k=top_k)
    return OwnRouter(weights, norm, left[num_experts].float() if num_experts in left else None)
