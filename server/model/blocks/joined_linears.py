"""JoinedLinears: projections of the same rows, which one product computes where their weights allow it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from server.model.modules.linear import FastLinear


class JoinedLinears:
    """Projections of the same rows.

    Args:
        linears: modules, which stay usable.
    """

    def __init__(self, linears: Sequence[nn.Module]):
        self._linears = linears
        self._joined: tuple[torch.Tensor, torch.Tensor | None] | None = None

    @property
    def has_hooks(self) -> bool:
        """True if something, such as an adapter, is added to one of them."""
        return any(linear._forward_hooks for linear in self._linears)  # noqa: SLF001  torch has no public name

    def join(self) -> None:
        """Let the weights be parts of one matrix, if they are plain and of one type."""
        if len(self._linears) == 1 or any(type(each) not in {nn.Linear, FastLinear} for each in self._linears):
            return
        linears = [cast("nn.Linear", each) for each in self._linears]
        if len({each.weight.dtype for each in linears}) > 1 or len({each.bias is None for each in linears}) > 1:
            return
        weight = torch.cat([each.weight.detach() for each in linears])
        bias = None
        if linears[0].bias is not None:
            bias = torch.cat([each.bias.detach() for each in linears])
        for each, part in zip(linears, torch.split(weight, [each.out_features for each in linears]), strict=True):
            each.weight = nn.Parameter(part, requires_grad=False)
        self._joined = weight, bias

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the projections ``(tokens, numbers)``, one behind the other."""
        if self._joined is not None:
            return F.linear(rows, *self._joined)
        parts = [linear(rows) for linear in self._linears]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)
