"""HeadScalesParts: factors of queries by their position and head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

from server.model.attention.indexer import HEAD_SCALES


@dataclass(frozen=True)
class HeadScalesParts:
    """The parts of a module that multiplies queries by ``scale * log(position + 1) + bias`` of their head."""

    module: nn.Module
    scales: nn.Parameter  # (heads,)
    offsets: nn.Parameter

    @classmethod
    def find(cls, owner: Any) -> Self | None:
        """Return the parts of the module in an attention or an indexer; None if it has none that is known."""
        module = getattr(owner, HEAD_SCALES, None)
        if not isinstance(module, nn.Module):
            return None
        found = dict(module.named_parameters())
        if found.keys() != {"scale", "bias"} or found["scale"].ndim != 1 or found["scale"].shape != found["bias"].shape:
            return None
        return cls(module, found["scale"], found["bias"])

    def parameters(self) -> Iterator[nn.Parameter]:
        yield from (self.scales, self.offsets)

    def at(self, positions: Sequence[int]) -> torch.Tensor:
        """Return the factors, float32 ``(heads, positions)``."""
        logarithms = (torch.tensor(positions) + 1).float().log()
        with torch.inference_mode():
            return self.scales.float().unsqueeze(1) * logarithms + self.offsets.float().unsqueeze(1)
