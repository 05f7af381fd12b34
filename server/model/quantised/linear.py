"""A linear layer of the trunk whose matrix stays quantised."""

from __future__ import annotations

import torch
from torch import nn

from server.kernels.formats.blocks import OUTPUTS, BlockFormat
from server.kernels.native.library import Kernels
from server.kernels.native.linear import native_linear
from server.kernels.native.slot_format import PLAIN, Place
from server.kernels.native.structures.matrices import Matrix

NAME = "weight"


class QuantisedLinear(nn.Module):
    """Replaces an ``nn.Linear``; has its bias and, as buffers, its matrix in a block format.

    The buffers are not in the state dict, because checkpoints store the matrix under another name; ``fill`` sets them.

    Args:
        original: the layer on the meta device.
        block_format: the format of the matrix, ``server.kernels.formats.block_int8`` or ``block_int4``.
    """

    kernels: Kernels | None = None

    def __init__(self, original: nn.Linear, block_format: BlockFormat):
        super().__init__()
        self.in_features, self.out_features = original.in_features, original.out_features
        self.bias = original.bias
        self._format, self._dtype = block_format, original.weight.dtype
        for name, dtype, shape in block_format.specs(NAME, self.out_features, self.in_features):
            self.register_buffer(name, torch.empty(shape, dtype=dtype, device="meta"), persistent=False)
        self._is_hf_initialized = True  # keeps transformers from initialising it

    def fill(self, tensors: dict[str, torch.Tensor]) -> None:
        """Set the tensors of the matrix, named as in the format's ``specs("weight", ...)``."""
        for name, value in tensors.items():
            setattr(self, name, value)

    @property
    def matrix(self) -> Matrix:
        """The description of the matrix for the native kernels."""
        places = {name: Place(each.dtype, each.shape, each.data_ptr()) for name, each in self._tensors.items()}
        matrix = self._format.describe(places, NAME, (self.out_features, self.in_features))
        assert matrix is not None  # the kernels support every block format
        return matrix

    @property
    def weight(self) -> torch.Tensor:
        """The matrix ``(out, in)``, dequantised at each call, for models that read it directly."""
        return self._format.dequantise(self._tensors, NAME).to(self._dtype)

    def rows(self, first: int, count: int) -> torch.Tensor:
        """Return some rows of ``weight``.

        Args:
            first: a multiple of ``blocks.OUTPUTS``.
        """
        chosen = slice(first // OUTPUTS, -(-(first + count) // OUTPUTS))
        names = [NAME + suffix for suffix in (self._format.CODES, self._format.SCALE)]
        padded = self._format.dequantise({name: self._tensors[name][chosen] for name in names}, NAME)
        return padded[:count, : self.in_features].to(self._dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's name
        """``(..., in)`` to ``(..., out)`` in the dtype of the input."""
        if self.kernels is not None and input.dtype in PLAIN:
            return native_linear(self.kernels, input, self.matrix, self.bias)
        output = self._format.project(self._tensors, NAME, input.flatten(0, -2), self.bias)
        return output.view(*input.shape[:-1], self.out_features)

    @property
    def _tensors(self) -> dict[str, torch.Tensor]:
        return {name: value for name, value in self._buffers.items() if value is not None}
