"""An NVFP4 matrix whose scales a number of the matrix divides: the ``NAME_divisor`` of ``fp4``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from expert_store import TensorSource
from server.kernels.formats import fp4
from server.kernels.formats.blocks import Spec
from server.kernels.native.slot_format import Places, Shape
from server.kernels.native.structures.matrices import Matrix
from server.model.quantised.linear import LinearFormat
from server.model.quantised.matrix import SlotTensor


@dataclass(frozen=True)
class Divided:
    """The format of such matrices, as a ``LinearFormat``."""

    stored: LinearFormat

    OUTPUTS = 1

    def specs(self, name: str, out_features: int, in_features: int) -> list[Spec]:
        return [*self.stored.specs(name, out_features, in_features), (name + fp4.DIVISOR, torch.float32, (1,))]

    def dequantise(self, weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
        """The float32 matrix ``(out, in)``."""
        return self.stored.dequantise(weights, name)

    def describe(self, places: Places, name: str, shape: Shape) -> Matrix | None:
        return self.stored.describe(places, name, shape)

    def project(
        self, weights: Mapping[str, torch.Tensor], name: str, rows: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """``(rows, in)`` to ``(rows, out)`` in the dtype of the rows."""
        return self.stored.project(weights, name, rows, bias)


def divisor_of(factor: TensorSource) -> SlotTensor:
    """Return the divisor of a matrix whose weights a number of the checkpoint multiplies."""
    return SlotTensor(fp4.DIVISOR, torch.float32, (1,), (factor,), _reciprocal)


def _reciprocal(read: Sequence[torch.Tensor]) -> torch.Tensor:
    return read[0].double().reciprocal().float().view(1)
