"""A matrix of the trunk that stays quantised in memory, as a checkpoint stores it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import torch

from expert_store import PartOf, TensorSource
from server.model.quantised.linear import LinearFormat
from server.model.quantised.matrix import ReadTensor, SlotTensor


@dataclass(frozen=True)
class PackedMatrix:
    """The format of a matrix, and its tensors in the order of ``format.specs``."""

    format: LinearFormat
    tensors: tuple[SlotTensor, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of the loaded matrix."""
        return sum(math.prod(each.shape) * each.dtype.itemsize for each in self.tensors)

    @property
    def sources(self) -> list[TensorSource]:
        """The tensors of the checkpoint that ``read`` reads, in their order; each once."""
        return list(dict.fromkeys(source for tensor in self.tensors for source in tensor.sources))

    def read(self, read: ReadTensor) -> dict[str, torch.Tensor]:
        """Read the tensors, by suffix.

        Args:
            read: called for each of ``sources``, in their order.
        """
        values = {source: read(source) for source in self.sources}
        made: dict[Hashable, Mapping[str, torch.Tensor]] = {}
        found = {}
        for tensor in self.tensors:
            parts = [values[source] for source in tensor.sources]
            if isinstance(tensor.make, PartOf):
                key = tensor.make.make, tensor.sources
                made[key] = made.get(key) or tensor.make.make(parts)
                found[tensor.suffix] = made[key][tensor.make.name]
            else:
                found[tensor.suffix] = tensor.made(parts)
        return found
