"""A quantised matrix of a checkpoint: the tensors that it consists of, and how they become those of a slot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch

from expert_store import CheckpointError, TensorSource, read_tensor
from server.kernels.expert import dequantised

Specs = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]  # dtype and shape of a slot's tensors, by suffix


@dataclass(frozen=True)
class SlotTensor:
    """One tensor of a matrix as it lies in a slot (``server.kernels`` has the formats).

    Without ``make`` its bytes are those of its source; with it, it is what that gives of its sources.
    """

    suffix: str  # after the name of the parameter
    dtype: torch.dtype
    shape: tuple[int, ...]
    sources: tuple[TensorSource, ...]
    make: Callable[[Sequence[torch.Tensor]], torch.Tensor] | None = None

    def made(self, read: Sequence[torch.Tensor]) -> torch.Tensor:
        """The tensor from its sources, perhaps not yet in its dtype."""
        return read[0].view(self.shape) if self.make is None else self.make(read)


@dataclass(frozen=True)
class StoredMatrix:
    """One quantised matrix of a checkpoint."""

    shape: tuple[int, int]  # (out, in)
    tensors: tuple[SlotTensor, ...]
    is_out_in: bool = False  # even where the checkpoint's unquantised matrices would be (in, out)
    can_turn: bool = False  # whether its tensors, transposed, are those of the transposed matrix

    def turned(self) -> StoredMatrix:
        """The transposed matrix."""
        tensors = (replace(each, shape=each.shape[::-1], make=partial(_turn, each)) for each in self.tensors)
        return replace(self, shape=self.shape[::-1], tensors=tuple(tensors))

    def dequantise(self) -> torch.Tensor:
        """The float32 matrix ``(out, in)``, read from the disk.

        Raises:
            CheckpointError: its tensors contradict each other.
        """
        weights = {}
        for tensor in self.tensors:
            read = [read_tensor(source) for source in tensor.sources]
            weights[tensor.suffix] = tensor.made(read).to(tensor.dtype)
        matrix = dequantised(weights, "")
        assert matrix is not None
        return matrix


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that would be one parameter, had it not been quantised."""

    name: str  # that it would have
    sources: tuple[TensorSource, ...]  # all that it consists of
    matrices: tuple[StoredMatrix, ...]  # one, or one of each expert
    is_of_experts: bool

    def of_experts(self, expert: int | None, num_experts: int) -> Sequence[tuple[int, StoredMatrix]]:
        """Its matrices and the experts that they belong to.

        Args:
            expert: that it belongs to; None if it should hold the matrices of all.

        Raises:
            CheckpointError: it has another number of matrices.
        """
        if self.is_of_experts != (expert is None) or (expert is None and len(self.matrices) != num_experts):
            wanted = f"matrices of {num_experts} experts" if expert is None else "one matrix"
            raise CheckpointError(
                f"{self.sources[0].name} has shape {list(self.sources[0].shape)}; it should be {wanted}"
            )
        return [(number if expert is None else expert, matrix) for number, matrix in enumerate(self.matrices)]

    def dequantise(self) -> torch.Tensor:
        """The tensor in float32, read from the disk.

        Raises:
            CheckpointError: its parts contradict each other.
        """
        matrices = [matrix.dequantise() for matrix in self.matrices]
        return torch.stack(matrices) if self.is_of_experts else matrices[0]


def stored_parts(source: TensorSource | StoredTensor) -> tuple[TensorSource, ...]:
    """The tensors of the checkpoint that a parameter comes from."""
    return source.sources if isinstance(source, StoredTensor) else (source,)


class Scheme(Protocol):
    """One way of quantising checkpoints, as a config describes it."""

    dimensions: int  # of the codes of one matrix

    def name_of(self, codes: TensorSource) -> str | None:
        """The name that a tensor of codes would have, had it not been quantised; None for any other tensor."""

    def parts(self, codes: TensorSource, index: Mapping[str, TensorSource]) -> dict[str, TensorSource]:
        """What else belongs to some codes, by its role.

        Raises:
            CheckpointError: something is missing; the message names it.
        """

    def matrix(self, codes: TensorSource, parts: Mapping[str, TensorSource]) -> StoredMatrix:
        """The matrix of these tensors.

        Raises:
            CheckpointError: shapes contradict each other; the message names the tensor.
        """

    def specs(self, out_features: int, in_features: int) -> Specs:
        """What lies in a slot of a matrix, as far as the config alone tells."""


def sort_index(scheme: Scheme | None, index: Mapping[str, TensorSource]) -> dict[str, TensorSource | StoredTensor]:
    """The tensors of a checkpoint by the names that they would have unquantised, those of quantised matrices together.

    Raises:
        CheckpointError: a part of a matrix is missing or misshapen; the message names it.
    """
    if scheme is None:
        return dict(index)
    found: dict[str, TensorSource | StoredTensor] = {}
    taken: set[str] = set()
    for codes in index.values():
        name = scheme.name_of(codes)
        if name is not None:
            parts = scheme.parts(codes, index)
            found[name] = _stored(scheme, name, codes, parts)
            taken |= {codes.name, *(part.name for part in parts.values())}
    return {**{name: source for name, source in index.items() if name not in taken}, **found}


def expect(source: TensorSource, shape: Sequence[int], codes: TensorSource) -> None:
    """Raise a CheckpointError unless a part of a matrix has this shape."""
    if source.shape != tuple(shape):
        raise CheckpointError(
            f"{source.name} has shape {list(source.shape)}; {codes.name} of {list(codes.shape)} needs {list(shape)}"
        )


def require(index: Mapping[str, TensorSource], codes: TensorSource, *names: str) -> TensorSource:
    """The first of these tensors that is there; a CheckpointError if none is."""
    for name in names:
        if name in index:
            return index[name]
    raise CheckpointError(f"{codes.name} is quantised, but {names[0]} is missing; download the checkpoint again")


def _stored(scheme: Scheme, name: str, codes: TensorSource, parts: Mapping[str, TensorSource]) -> StoredTensor:
    sources = (codes, *parts.values())
    if len(codes.shape) == scheme.dimensions:
        matrices: tuple[StoredMatrix, ...] = (scheme.matrix(codes, parts),)
        return StoredTensor(name, sources, matrices, is_of_experts=False)
    if len(codes.shape) != scheme.dimensions + 1:
        raise CheckpointError(f"{codes.name} is quantised and has shape {list(codes.shape)}, which is no matrix")
    for part in parts.values():
        if part.shape[:1] != codes.shape[:1]:
            raise CheckpointError(
                f"{part.name} has shape {list(part.shape)}; its first size should be that of {codes.name}, "
                f"{codes.shape[0]}"
            )
    matrices = tuple(
        scheme.matrix(_of_expert(codes, expert), {role: _of_expert(part, expert) for role, part in parts.items()})
        for expert in range(codes.shape[0])
    )
    return StoredTensor(name, sources, matrices, is_of_experts=True)


def _turn(tensor: SlotTensor, read: Sequence[torch.Tensor]) -> torch.Tensor:
    return tensor.made(read).mT.contiguous()


def _of_expert(source: TensorSource, expert: int) -> TensorSource:
    part = source.leading_part(expert, source.shape[0])
    return TensorSource(part.name, part.dtype, part.shape[1:], part.extent)
