"""Matrices of the trunk that stay quantised, and linear layers of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import nn

from server.kernels.formats.blocks import SHAPE, Spec
from server.kernels.native.library import Kernels
from server.kernels.native.linear import native_linear
from server.kernels.native.slot_format import PLAIN, Place, Places, Shape
from server.kernels.native.structures.matrices import Matrix

NAME = "weight"
MOST_ROWS = 64  # that are dequantised at a time, with all outputs of their blocks


class LinearFormat(Protocol):
    """A format of such a matrix: ``block_int8``, ``block_int4``, or one of ``GgmlType`` that are not plain."""

    @property
    def OUTPUTS(self) -> int:  # noqa: N802  a constant of modules
        """The outputs in an element of the first dimension of its tensors, except that of the shape."""

    def specs(self, name: str, out_features: int, in_features: int) -> list[Spec]: ...

    def dequantise(self, weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor: ...

    def describe(self, places: Places, name: str, shape: Shape) -> Matrix | None: ...

    def project(
        self, weights: Mapping[str, torch.Tensor], name: str, rows: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor: ...


class QuantisedMatrix(nn.Module):
    """A matrix that stays quantised, as buffers.

    They are not in the state dict, because checkpoints store the matrix under another name; ``fill`` sets them.

    Args:
        dtype: that of ``weight``.
    """

    kernels: Kernels | None = None

    def __init__(self, out_features: int, in_features: int, matrix_format: LinearFormat, dtype: torch.dtype):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.format, self._dtype = matrix_format, dtype
        for name, own_dtype, shape in matrix_format.specs(NAME, out_features, in_features):
            self.register_buffer(name, torch.empty(shape, dtype=own_dtype, device="meta"), persistent=False)
        self._is_hf_initialized = True  # keeps transformers from initialising it

    def fill(self, tensors: dict[str, torch.Tensor]) -> None:
        """Set the tensors of the matrix, named as in the format's ``specs("weight", ...)``."""
        for name, value in tensors.items():
            setattr(self, name, value)

    @property
    def places(self) -> dict[str, Place]:
        """The places of the tensors, by name."""
        return {name: Place(each.dtype, each.shape, each.data_ptr()) for name, each in self._tensors.items()}

    @property
    def matrix(self) -> Matrix | None:
        """The description of the matrix for the native kernels; None if they do not support its format."""
        return self.format.describe(self.places, NAME, (self.out_features, self.in_features))

    @property
    def weight(self) -> torch.Tensor:
        """The matrix ``(out, in)``, dequantised at each call, for models that read it directly."""
        return self.format.dequantise(self._tensors, NAME).to(self._dtype)

    def rows(self, first: int, count: int) -> torch.Tensor:
        """Return some rows of ``weight``.

        Args:
            first: a multiple of the format's ``OUTPUTS``.
        """
        outputs = self.format.OUTPUTS
        padded = self._dequantised(slice(first // outputs, -(-(first + count) // outputs)))
        return padded[:count].to(self._dtype)

    def rows_at(self, places: torch.Tensor) -> torch.Tensor:
        """Return rows in float32, ``(rows, in)``.

        Args:
            places: of the rows, int64.
        """
        matrix = None if self.kernels is None else self.matrix
        if matrix is not None and self.kernels is not None:
            found = torch.empty((len(places), self.in_features))
            rows = np.ascontiguousarray(places.numpy(force=True), np.int32)
            if self.kernels.read_rows(matrix, rows.ctypes.data, len(rows), found.data_ptr()):
                return found
        outputs = self.format.OUTPUTS
        parts = []
        for some in torch.split(places, MOST_ROWS):
            numbers = self._dequantised(some // outputs).view(len(some), outputs, self.in_features)
            parts.append(numbers[torch.arange(len(some), device=some.device), some % outputs])
        return torch.cat(parts) if parts else torch.empty((0, self.in_features), device=places.device)

    def _dequantised(self, chosen: slice | torch.Tensor) -> torch.Tensor:
        """The float32 rows of some blocks of outputs."""
        tensors = {name: each[chosen] for name, each in self._tensors.items() if not name.endswith(SHAPE)}
        return self.format.dequantise(tensors, NAME)[:, : self.in_features]

    @property
    def _tensors(self) -> dict[str, torch.Tensor]:
        return {name: value for name, value in self._buffers.items() if value is not None}


class QuantisedLinear(QuantisedMatrix):
    """Replaces an ``nn.Linear``; has its bias and its quantised matrix.

    Args:
        original: the layer on the meta device.
        linear_format: the format of the matrix.
    """

    def __init__(self, original: nn.Linear, linear_format: LinearFormat):
        super().__init__(original.out_features, original.in_features, linear_format, original.weight.dtype)
        self.bias = original.bias

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's name
        """``(..., in)`` to ``(..., out)`` in the dtype of the input."""
        if self.kernels is not None and input.dtype in PLAIN and (matrix := self.matrix) is not None:
            return native_linear(self.kernels, input, matrix, self.bias)
        output = self.format.project(self._tensors, NAME, input.flatten(0, -2), self.bias)
        return output.view(*input.shape[:-1], self.out_features)
