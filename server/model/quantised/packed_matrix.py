"""A matrix of the trunk that stays quantised in memory, as a checkpoint stores it."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from expert_store import PartOf, TensorSource, empty_tensor
from server.model.quantised.linear import LinearFormat
from server.model.quantised.matrix import SlotTensor

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class PackedMatrix:
    """The format of a matrix, and its tensors in the order of ``format.specs``.

    Attributes:
        rows: returns a part of the matrix by its first row and their number; None if it has no parts.
    """

    format: LinearFormat
    tensors: tuple[SlotTensor, ...]
    rows: Callable[[int, int], PackedMatrix] | None = field(default=None, compare=False)

    @property
    def nbytes(self) -> int:
        """The bytes of the loaded matrix."""
        return sum(math.prod(each.shape) * each.dtype.itemsize for each in self.tensors)

    @property
    def sources(self) -> list[TensorSource]:
        """The tensors of the checkpoint that it is made of, each once."""
        return list(dict.fromkeys(source for tensor in self.tensors for source in tensor.sources))

    @property
    def is_converted(self) -> bool:
        """True if no tensor has the memory of a source."""
        return all(isinstance(tensor.make, PartOf) for tensor in self.tensors)

    def empty(self) -> dict[str, torch.Tensor]:
        """Return its tensors by suffix, to be filled."""
        return {tensor.suffix: empty_tensor(tensor.dtype, tensor.shape) for tensor in self.tensors}

    def parts(self, most_bytes: int, whole: Tensors) -> Iterator[tuple[PackedMatrix, Tensors]]:
        """Yield parts that are made of few bytes, with their share of the tensors of the whole.

        Args:
            most_bytes: of the sources of a part, if it has more than one block of rows.
            whole: the tensors by suffix.
        """
        if self.rows is None:
            yield self, whole
            return
        outputs = self.format.OUTPUTS
        (source,) = self.sources
        num_rows, row_bytes = source.shape[0], source.extent.nbytes // source.shape[0]
        size = max(1, most_bytes // (row_bytes * outputs)) * outputs
        for first in range(0, num_rows, size):
            count = min(size, num_rows - first)
            share = slice(first // outputs, (first + count) // outputs)
            yield self.rows(first, count), {suffix: tensor[share] for suffix, tensor in whole.items()}

    def make(self, sources: Sequence[torch.Tensor], into: Tensors | None = None) -> dict[str, torch.Tensor]:
        """Make the tensors, by suffix.

        Args:
            sources: of the checkpoint, in the order of the attribute.
            into: tensors to write, if ``is_converted``; by default new ones.
        """
        values = dict(zip(self.sources, sources, strict=True))
        made: dict[Hashable, Tensors] = {}
        found = {}
        for tensor in self.tensors:
            parts = [values[source] for source in tensor.sources]
            if isinstance(tensor.make, PartOf):
                key = tensor.make.make, tensor.sources
                made[key] = made.get(key) or tensor.make.make(parts, into)
                found[tensor.suffix] = made[key][tensor.make.name]
            else:
                found[tensor.suffix] = tensor.made(parts)
        return found
