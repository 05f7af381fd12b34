"""The expansion of latents (``kv_b_proj`` of multi-head latent attention), quantised as two matrices of all heads.

``NAME_keys``, ``(heads * rank, nope)``, absorbs the expansion of keys into queries, and ``NAME_values``,
``(heads * value, rank)``, expands latents to values; each has the tensors of its own format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from server.kernels.formats.blocks import Spec
from server.kernels.native.slot_format import Places, Shape
from server.kernels.native.structures.matrices import Matrix
from server.model.quantised.linear import LinearFormat

KEYS, VALUES = "_keys", "_values"


@dataclass(frozen=True)
class LatentExpansion:
    """The format of such a layer, as a ``LinearFormat``."""

    keys: LinearFormat
    values: LinearFormat
    heads: int
    rank: int
    nope_dim: int  # numbers of a head's key that are not rotated
    value_dim: int

    OUTPUTS = 1

    @property
    def shapes(self) -> tuple[Shape, Shape]:
        """Outputs and inputs of the two matrices."""
        return (self.heads * self.rank, self.nope_dim), (self.heads * self.value_dim, self.rank)

    def specs(self, name: str, out_features: int, in_features: int) -> list[Spec]:
        if (out_features, in_features) != (self.heads * (self.nope_dim + self.value_dim), self.rank):
            return []  # no tensors make a layer of another shape
        keys, values = self.shapes
        return [*self.keys.specs(name + KEYS, *keys), *self.values.specs(name + VALUES, *values)]

    def dequantise(self, weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
        """The float32 matrix ``(heads * (nope + value), rank)``."""
        keys = self.keys.dequantise(weights, name + KEYS).view(self.heads, self.rank, self.nope_dim)
        values = self.values.dequantise(weights, name + VALUES).view(self.heads, self.value_dim, self.rank)
        return torch.cat([keys.mT, values], 1).flatten(0, 1)

    def describe(self, places: Places, name: str, shape: Shape) -> Matrix | None:
        """Return None: no single matrix is stored; see ``parts``."""
        del places, name, shape
        return None

    def parts(self, places: Places, name: str) -> tuple[Matrix, Matrix] | None:
        """Describe both matrices to the native kernels; None if they do not support them."""
        of_keys, of_values = self.shapes
        keys = self.keys.describe(places, name + KEYS, of_keys)
        values = self.values.describe(places, name + VALUES, of_values)
        return None if keys is None or values is None else (keys, values)

    def project(
        self, weights: Mapping[str, torch.Tensor], name: str, rows: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """``(rows, rank)`` to ``(rows, heads * (nope + value))``."""
        return F.linear(rows, self.dequantise(weights, name).to(rows.dtype), bias)
