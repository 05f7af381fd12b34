"""Limits of the norms of heads, whose longer vectors are made as short (Inkling 2)."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

SCALE, LIMIT = "scale", "threshold"  # names in a module
LEAST_NORM = 1e-6  # is added to norms that are divided by
TOLERANCE = 1e-5  # error of a sample, relative to its largest number


@dataclass(frozen=True)
class HeadLimit:
    """A module that multiplies the numbers of heads by factors, and then limits the norm of each head."""

    module: Any
    limit: float
    scales: torch.Tensor | None  # float32 (heads * dim,); None: all are 1

    @classmethod
    def find(cls, module: Any, dim: int) -> Self | None:
        """Return the parts of a module; None if it computes something else.

        Args:
            module: of an attention.
            dim: numbers of a head.
        """
        if not isinstance(module, nn.Module):
            return None
        scale = getattr(module, SCALE, None)
        limit = next((getattr(each, LIMIT) for each in module.modules() if hasattr(each, LIMIT)), None)
        own = set() if scale is None else {scale}
        if not isinstance(limit, float) or {*module.parameters()} != own:
            return None
        if not _limits(module, limit, dim):
            return None
        return cls(module, limit, None if scale is None else scale.detach().float().flatten())


def limited(rows: torch.Tensor, limit: float) -> torch.Tensor:
    """Return rows of heads whose norms are at most a limit."""
    factors: torch.Tensor = (limit / (rows.norm(dim=-1, keepdim=True) + LEAST_NORM)).clamp(max=1.0)
    return rows * factors


def _limits(module: Any, limit: float, dim: int) -> bool:
    """Return whether a copy of a module with other factors multiplies and limits heads at the first positions."""
    copied, random = deepcopy(module).to("cpu", torch.float32), torch.Generator().manual_seed(0)
    scale = getattr(copied, SCALE, None)
    heads = 1 if scale is None else scale.shape[0]
    sizes = torch.tensor([0.3, 1.0, 3.0]).view(1, 3, 1, 1) * limit * dim**-0.5  # below and above the limit
    rows = torch.randn((1, 3, heads, dim), generator=random) * sizes
    wanted = rows
    if scale is not None:
        copied.scale = nn.Parameter(torch.randn(scale.shape, generator=random), requires_grad=False)
        wanted = rows * copied.scale
    wanted = limited(wanted, limit)
    try:
        with torch.inference_mode():
            found = copied(rows) if scale is None else copied(rows, torch.zeros((1, 3), dtype=torch.long))
    except (RuntimeError, TypeError, ValueError, AttributeError):  # a forward of another kind
        return False
    is_same = isinstance(found, torch.Tensor) and found.shape == wanted.shape
    return is_same and float((found - wanted).abs().max()) <= TOLERANCE * float(wanted.abs().max())
