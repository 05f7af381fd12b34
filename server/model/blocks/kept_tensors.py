"""KeptTensors: float32 copies that a description for the kernels points to."""

from __future__ import annotations

import torch

from server.kernels.native.structures.layers import Norm as NormSpec
from server.model.blocks.norms import Norm


class KeptTensors:
    """Tensors that live as long as this does, each contiguous and in float32."""

    def __init__(self) -> None:
        self._tensors: list[torch.Tensor] = []

    def keep(self, tensor: torch.Tensor) -> int:
        """Keep a copy of a tensor, and return its address."""
        self._tensors.append(tensor.detach().float().contiguous())
        return self._tensors[-1].data_ptr()

    def norm(self, norm: Norm) -> NormSpec:
        """Describe a norm to the kernels, but for gates."""
        addresses = [None if each is None else self.keep(each) for each in (norm.weight, norm.bias)]
        return NormSpec(*addresses, norm.epsilon, norm.kind)
