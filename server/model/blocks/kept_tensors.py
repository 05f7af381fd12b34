"""KeptTensors: tensors whose memory a description for the kernels refers to."""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import Structure
from typing import TypeVar, overload

import torch

from server.kernels.native.structures.layers import Norm as NormSpec
from server.model.blocks.norms import Norm

Spec = TypeVar("Spec", bound=Structure)


class KeptTensors:
    """Tensors, and descriptions that others refer to, that live as long as this does."""

    def __init__(self) -> None:
        self._tensors: list[torch.Tensor] = []
        self._specs: list[Structure] = []

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Iterate over the tensors."""
        return iter(self._tensors)

    def hold(self, tensor: torch.Tensor) -> int:
        """Keep a tensor as it is, and return its address."""
        self._tensors.append(tensor)
        return tensor.data_ptr()

    def own(self, spec: Spec) -> Spec:
        """Keep a description as it is."""
        self._specs.append(spec)
        return spec

    @overload
    def keep(self, tensor: torch.Tensor) -> int: ...

    @overload
    def keep(self, tensor: torch.Tensor | None) -> int | None: ...

    def keep(self, tensor: torch.Tensor | None) -> int | None:
        """Keep a contiguous copy of a tensor in float32, and return its address; None for no tensor."""
        return None if tensor is None else self.hold(tensor.detach().float().contiguous())

    def norm(self, norm: Norm) -> NormSpec:
        """Describe a norm to the kernels, but for gates."""
        return NormSpec(self.keep(norm.weight), self.keep(norm.bias), norm.epsilon, norm.kind)
