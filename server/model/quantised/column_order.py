"""A quantised matrix whose columns are stored in another order than that of its inputs.

It has the tensors of its format, and ``NAME_order``, int32 ``(in,)``: the input that each column belongs to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from server.kernels.formats.blocks import Spec
from server.kernels.formats.chunked import in_order
from server.kernels.native.slot_format import Places, Shape
from server.kernels.native.structures.matrices import Matrix
from server.model.quantised.linear import LinearFormat

ORDER = "_order"


@dataclass(frozen=True)
class OrderedColumns:
    """The format of such matrices, as a ``LinearFormat``."""

    stored: LinearFormat

    @property
    def OUTPUTS(self) -> int:  # noqa: N802  as in modules of formats
        return self.stored.OUTPUTS

    def specs(self, name: str, out_features: int, in_features: int) -> list[Spec]:
        return [*self.stored.specs(name, out_features, in_features), (name + ORDER, torch.int32, (in_features,))]

    def dequantise(self, weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
        """The float32 matrix ``(out, in)``, its columns in the order of the inputs."""
        return in_order(self.stored.dequantise(weights, name), weights[name + ORDER])

    def describe(self, places: Places, name: str, shape: Shape) -> Matrix | None:
        found, order = self.stored.describe(places, name, shape), places.get(name + ORDER)
        if found is not None:
            found.order = None if order is None else order.offset
        return found

    def project(
        self, weights: Mapping[str, torch.Tensor], name: str, rows: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Bring the numbers of rows into the order of the columns, and multiply them."""
        return self.stored.project(weights, name, rows.index_select(1, weights[name + ORDER]), bias)
