"""A linear layer of the trunk whose matrix stays quantised."""

from __future__ import annotations

import torch
from torch import nn

from server.kernels import q4, q8
from server.kernels.blocks import BlockFormat
from server.kernels.native.library import Format, Kernels, Matrix
from server.kernels.native.linear import native_linear
from server.kernels.native.slot_format import PLAIN

NAME = "weight"
NATIVE_FORMATS = {q8.CODES: Format.Q8, q4.CODES: Format.Q4}


class QuantisedLinear(nn.Module):
    """Replaces an ``nn.Linear``; has its bias and, as buffers, its matrix in a block format.

    Buffers are not part of the state dict, because checkpoints have the matrix under another name; ``fill`` sets them.

    Args:
        original: on the meta device.
        block_format: of the matrix, ``server.kernels.q8`` or ``q4``.
    """

    kernels: Kernels | None = None

    def __init__(self, original: nn.Linear, block_format: BlockFormat):
        super().__init__()
        self.in_features, self.out_features = original.in_features, original.out_features
        self.bias = original.bias
        self._format, self._dtype = block_format, original.weight.dtype
        for name, dtype, shape in block_format.specs(NAME, self.out_features, self.in_features):
            self.register_buffer(name, torch.empty(shape, dtype=dtype, device="meta"), persistent=False)
        self._is_hf_initialized = True  # or transformers would initialise it

    def fill(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take the matrix, whose tensors are named as its format's ``specs("weight", ...)`` names them."""
        for name, value in tensors.items():
            setattr(self, name, value)

    @property
    def matrix(self) -> Matrix:
        """The matrix as the native kernels take it."""
        codes, scales = (self._tensors[NAME + suffix] for suffix in (self._format.CODES, self._format.SCALE))
        return Matrix(
            format=NATIVE_FORMATS[self._format.CODES],
            outputs=self.out_features,
            inputs=self.in_features,
            data=codes.data_ptr(),
            scales=scales.data_ptr(),
        )

    @property
    def weight(self) -> torch.Tensor:
        """The matrix ``(out, in)``, dequantised at each call, for models that look at it themselves."""
        return self._format.dequantise(self._tensors, NAME).to(self._dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's name
        """``(..., in)`` to ``(..., out)`` in the dtype of the input."""
        if self.kernels is not None and input.dtype in PLAIN:
            return native_linear(self.kernels, input, self.matrix, self.bias)
        output = self._format.project(self._tensors, NAME, input.flatten(0, -2), self.bias)
        return output.view(*input.shape[:-1], self.out_features)

    @property
    def _tensors(self) -> dict[str, torch.Tensor]:
        return {name: value for name, value in self._buffers.items() if value is not None}
