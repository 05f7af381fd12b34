"""Additions that weigh the hidden states and what is added by the number of additions so far (Beam).

The kernels have no such weights: they are folded into the norms of the layer and the factor of its result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.norms import Norm

INDICES = ("attn_residual_add_idx", "mlp_residual_add_idx")  # attributes of a layer: the numbers of its two additions


@dataclass(frozen=True)
class DepthScales:
    """The weights of a layer's additions: of the mixer's results, then of those of the feed-forward part."""

    added: Sequence[float]
    kept: Sequence[float]  # of the hidden states

    @classmethod
    def of(cls, layer: Any) -> Self | None:
        """Return those of a layer's module; None if it adds without weights."""
        indices = [index for name in INDICES if isinstance(index := getattr(layer, name, None), int)]
        if len(indices) != len(INDICES):
            return None
        return cls([index**-0.5 for index in indices], [math.sqrt((index - 1) / index) for index in indices])

    @property
    def output_scale(self) -> float:
        """The factor of the hidden states after the layer."""
        return self.kept[0] * self.kept[1]

    def mixer_norm(self, norm: Norm | None) -> Norm:
        """Return the norm of the mixer's results, whose sum with the hidden states is not weighted."""
        return _scaled(norm, self.added[0] / self.kept[0])

    def inner_norm(self, norm: Norm | None) -> Norm:
        """Return the norm before the feed-forward part, which takes a multiple of what the module's takes."""
        return replace(_scaled(norm, 1.0), epsilon=_scaled(norm, 1.0).epsilon / self.kept[0] ** 2)

    def output_norm(self, norm: Norm | None) -> Norm:
        """Return the norm of the feed-forward part's results."""
        return _scaled(norm, self.added[1] / self.output_scale)


def _scaled(norm: Norm | None, factor: float) -> Norm:
    if norm is None:
        raise UnsupportedLayerError("its additions are weighted, and have no norms that take the weights")
    bias = None if norm.bias is None else norm.bias * factor
    return replace(norm, weight=norm.weight * factor, bias=bias)
