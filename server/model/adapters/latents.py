"""Additions of adapters to an expansion of latents that attention has absorbed (``server.model.attention.mla``).

A row of keys is expanded by the factors of the token that asks. So all tokens of a sequence need the same factors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from server.model.adapters.step_adapters import StepAdapters


@dataclass(frozen=True)
class LatentAdditions:
    """The additions of a step's adapters to one layer's ``kv_b_proj``.

    Args:
        name: of ``kv_b_proj``.
        heads: of the layer.
        nope_dim: outputs of a head for its key; those for its value follow.
    """

    adapters: StepAdapters
    name: str
    heads: int
    nope_dim: int

    def add_to_queries(self, query: torch.Tensor, absorbed: torch.Tensor) -> None:
        """Add to absorbed queries ``(heads, tokens, rank + rotated)``.

        Args:
            query: ``(heads, tokens, key_dim)``.
        """
        for rows, scales, down, up in self._parts(absorbed):
            given = query[:, rows, : self.nope_dim].to(down.dtype)
            added = (given @ up[:, : self.nope_dim]) @ down
            absorbed[:, rows, : down.shape[1]] += (added * scales).to(absorbed.dtype)

    def add_to_values(self, output: torch.Tensor, values: torch.Tensor) -> None:
        """Add to weighted values ``(tokens, heads, value_dim)``.

        Args:
            output: weighted latents, ``(tokens, heads, rank)``.
        """
        for rows, scales, down, up in self._parts(values):
            low = output[rows].transpose(0, 1).to(down.dtype) @ down.mT  # (heads, rows, rank)
            added = (low @ up[:, self.nope_dim :].mT) * scales
            values[rows] += added.transpose(0, 1).to(values.dtype)

    def _parts(self, like: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield the tokens of each addition, their factors, ``down (rank, latent)`` and ``up (heads, dim, rank)``."""
        for column, adapter in zip(self.adapters.factors.T, self.adapters.adapters, strict=True):
            used = np.flatnonzero(column)
            for part in adapter.linears.get(self.name, ()) if len(used) else ():
                rows = torch.from_numpy(used).to(like.device)
                scales = torch.from_numpy(column[used] * np.float32(part.scale)).to(like.device).unsqueeze(1)
                up = part.up.to(like.device)
                yield rows, scales, part.down.to(like.device), up.view(self.heads, -1, up.shape[1])
