"""A linear layer of the trunk whose matrix stays quantised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import nn

from server.kernels.formats.blocks import SHAPE, Spec
from server.kernels.native.library import Kernels
from server.kernels.native.linear import native_linear
from server.kernels.native.slot_format import PLAIN, Place, Places, Shape
from server.kernels.native.structures.matrices import Matrix

NAME = "weight"


class LinearFormat(Protocol):
    """A format of such a matrix: ``block_int8``, ``block_int4``, or a ``GgmlType`` that is not plain."""

    @property
    def OUTPUTS(self) -> int:  # noqa: N802  a constant of modules
        """The outputs in an element of the first dimension of its tensors, except that of the shape."""

    def specs(self, name: str, out_features: int, in_features: int) -> list[Spec]: ...

    def dequantise(self, weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor: ...

    def describe(self, places: Places, name: str, shape: Shape) -> Matrix | None: ...

    def project(
        self, weights: Mapping[str, torch.Tensor], name: str, rows: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor: ...


class QuantisedLinear(nn.Module):
    """Replaces an ``nn.Linear``; has its bias and, as buffers, its quantised matrix.

    The buffers are not in the state dict, because checkpoints store the matrix under another name; ``fill`` sets them.

    Args:
        original: the layer on the meta device.
        linear_format: the format of the matrix.
    """

    kernels: Kernels | None = None

    def __init__(self, original: nn.Linear, linear_format: LinearFormat):
        super().__init__()
        self.in_features, self.out_features = original.in_features, original.out_features
        self.bias = original.bias
        self._format, self._dtype = linear_format, original.weight.dtype
        for name, dtype, shape in linear_format.specs(NAME, self.out_features, self.in_features):
            self.register_buffer(name, torch.empty(shape, dtype=dtype, device="meta"), persistent=False)
        self._is_hf_initialized = True  # keeps transformers from initialising it

    def fill(self, tensors: dict[str, torch.Tensor]) -> None:
        """Set the tensors of the matrix, named as in the format's ``specs("weight", ...)``."""
        for name, value in tensors.items():
            setattr(self, name, value)

    @property
    def matrix(self) -> Matrix | None:
        """The description of the matrix for the native kernels; None if they do not support its format."""
        places = {name: Place(each.dtype, each.shape, each.data_ptr()) for name, each in self._tensors.items()}
        return self._format.describe(places, NAME, (self.out_features, self.in_features))

    @property
    def weight(self) -> torch.Tensor:
        """The matrix ``(out, in)``, dequantised at each call, for models that read it directly."""
        return self._format.dequantise(self._tensors, NAME).to(self._dtype)

    def rows(self, first: int, count: int) -> torch.Tensor:
        """Return some rows of ``weight``.

        Args:
            first: a multiple of the format's ``OUTPUTS``.
        """
        outputs = self._format.OUTPUTS
        chosen = slice(first // outputs, -(-(first + count) // outputs))
        tensors = {name: each[chosen] for name, each in self._tensors.items() if not name.endswith(SHAPE)}
        padded = self._format.dequantise(tensors, NAME)
        return padded[:count, : self.in_features].to(self._dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's name
        """``(..., in)`` to ``(..., out)`` in the dtype of the input."""
        if self.kernels is not None and input.dtype in PLAIN and (matrix := self.matrix) is not None:
            return native_linear(self.kernels, input, matrix, self.bias)
        output = self._format.project(self._tensors, NAME, input.flatten(0, -2), self.bias)
        return output.view(*input.shape[:-1], self.out_features)

    @property
    def _tensors(self) -> dict[str, torch.Tensor]:
        return {name: value for name, value in self._buffers.items() if value is not None}
