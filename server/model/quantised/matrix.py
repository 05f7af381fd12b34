"""A quantised matrix of a checkpoint: its tensors, and their conversion to the tensors of a slot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch

from expert_store import CheckpointError, TensorSource, read_tensor
from server.kernels.expert import dequantised

ReadTensor = Callable[[TensorSource], torch.Tensor]
Specs = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]  # dtype and shape of a slot's tensors, by suffix


@dataclass(frozen=True)
class SlotTensor:
    """One tensor of a matrix in a slot (see ``server.kernels.formats``).

    Without ``make``, it has the bytes of its only source; otherwise ``make`` converts its sources.
    """

    suffix: str  # of the parameter's name
    dtype: torch.dtype
    shape: tuple[int, ...]
    sources: tuple[TensorSource, ...]
    make: Callable[[Sequence[torch.Tensor]], torch.Tensor] | None = None

    def made(self, read: Sequence[torch.Tensor]) -> torch.Tensor:
        """Convert its sources to the tensor, which may not have its final dtype yet."""
        return read[0].view(self.shape) if self.make is None else self.make(read)


@dataclass(frozen=True)
class StoredMatrix:
    """One quantised matrix of a checkpoint."""

    shape: tuple[int, int]  # (out, in)
    tensors: tuple[SlotTensor, ...]
    is_out_in: bool = False  # even if the checkpoint's unquantised matrices would be (in, out)
    can_transpose: bool = False  # the transposed matrix has the same tensors, transposed

    @property
    def sources(self) -> Iterator[TensorSource]:
        """The tensors of the checkpoint that it is made of; one may come several times."""
        return (source for tensor in self.tensors for source in tensor.sources)

    def transposed(self) -> StoredMatrix:
        """Return the transposed matrix."""
        tensors = (replace(each, shape=each.shape[::-1], make=partial(_transpose, each)) for each in self.tensors)
        return replace(self, shape=self.shape[::-1], tensors=tuple(tensors))

    def dequantise(self, read: ReadTensor = read_tensor) -> torch.Tensor:
        """Read the float32 matrix ``(out, in)`` from the disk.

        Args:
            read: called for each of its ``sources``, in their order.

        Raises:
            CheckpointError: its tensors contradict each other.
        """
        weights = {}
        for tensor in self.tensors:
            values = [read(source) for source in tensor.sources]
            weights[tensor.suffix] = tensor.made(values).to(tensor.dtype)
        matrix = dequantised(weights, "")
        assert matrix is not None
        return matrix


@dataclass(frozen=True)
class StoredTensor:
    """The quantised tensors that correspond to one tensor of an unquantised checkpoint."""

    name: str  # in the unquantised checkpoint
    sources: tuple[TensorSource, ...]
    matrices: tuple[StoredMatrix, ...]  # one, or one per expert
    is_of_experts: bool

    def of_experts(self, expert: int | None, num_experts: int) -> Sequence[tuple[int, StoredMatrix]]:
        """Return the matrices with the experts that they belong to.

        Args:
            expert: the expert of the tensor; None if the tensor should hold the matrices of all experts.

        Raises:
            CheckpointError: it has another number of matrices.
        """
        if self.is_of_experts != (expert is None) or (expert is None and len(self.matrices) != num_experts):
            wanted = f"matrices of {num_experts} experts" if expert is None else "one matrix"
            raise CheckpointError(
                f"{self.sources[0].name} has shape {list(self.sources[0].shape)}; it should hold {wanted}"
            )
        return [(number if expert is None else expert, matrix) for number, matrix in enumerate(self.matrices)]

    def dequantise(self, read: ReadTensor = read_tensor) -> torch.Tensor:
        """Read the tensor from the disk, in float32.

        Args:
            read: called for each source of each matrix, in their order.

        Raises:
            CheckpointError: its parts contradict each other.
        """
        matrices = [matrix.dequantise(read) for matrix in self.matrices]
        return torch.stack(matrices) if self.is_of_experts else matrices[0]

    def read(self, dtype: torch.dtype, read: ReadTensor = read_tensor) -> torch.Tensor:
        """Read the tensor from the disk, in a dtype.

        Args:
            read: called for each source of each matrix, in their order.

        Raises:
            CheckpointError: its parts contradict each other.
        """
        return self.dequantise(read).to(dtype)

    @property
    def reads(self) -> Iterator[TensorSource]:
        """The tensors of the checkpoint that ``read`` reads, in their order."""
        return (source for matrix in self.matrices for source in matrix.sources)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the unquantised tensor."""
        shape = self.matrices[0].shape
        return (len(self.matrices), *shape) if self.is_of_experts else shape


def stored_parts(source: TensorSource | StoredTensor) -> tuple[TensorSource, ...]:
    """Return the checkpoint's tensors that a parameter is made of."""
    return source.sources if isinstance(source, StoredTensor) else (source,)


def read_order(source: TensorSource | StoredTensor) -> Iterator[TensorSource]:
    """Yield the tensors that are read to get a tensor unquantised, in their order."""
    if isinstance(source, TensorSource):
        yield source
    else:
        yield from source.reads


class Scheme(Protocol):
    """A quantisation method, with the settings of a config."""

    dimensions: int  # number of dimensions of one matrix's codes

    def name_of(self, codes: TensorSource) -> str | None:
        """Return the name of a tensor of codes in the unquantised checkpoint; None for any other tensor."""

    def parts(self, codes: TensorSource, index: Mapping[str, TensorSource]) -> dict[str, TensorSource]:
        """Find the other tensors of a matrix, by their role.

        Raises:
            CheckpointError: a tensor is missing; the message names it.
        """

    def matrix(self, codes: TensorSource, parts: Mapping[str, TensorSource]) -> StoredMatrix:
        """Build the matrix of these tensors.

        Raises:
            CheckpointError: shapes contradict each other; the message names the tensor.
        """

    def specs(self, out_features: int, in_features: int) -> Specs:
        """Return the specs of a matrix in a slot, from the config alone."""


def group_by_matrix(
    scheme: Scheme | None, tensors: Mapping[str, TensorSource | StoredTensor]
) -> dict[str, TensorSource | StoredTensor]:
    """Group the tensors of quantised matrices, and index all tensors by their names in the unquantised checkpoint.

    Args:
        tensors: by name; without a scheme, some may be quantised and grouped already.

    Raises:
        CheckpointError: a part of a matrix is missing or has the wrong shape; the message names it.
    """
    if scheme is None:
        return dict(tensors)
    index = {name: source for name, source in tensors.items() if isinstance(source, TensorSource)}
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
    """Raise a CheckpointError unless a tensor of a matrix has this shape."""
    if source.shape != tuple(shape):
        raise CheckpointError(
            f"{source.name} has shape {list(source.shape)}; {codes.name} of {list(codes.shape)} needs {list(shape)}"
        )


def require(index: Mapping[str, TensorSource], codes: TensorSource, *names: str) -> TensorSource:
    """Return the first of these tensors that exists; raise a CheckpointError if none does."""
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
        raise CheckpointError(f"{codes.name} is quantised, but its shape {list(codes.shape)} is not that of a matrix")
    for part in parts.values():
        if part.shape[:1] != codes.shape[:1] and not _is_shared(part):
            raise CheckpointError(
                f"{part.name} has shape {list(part.shape)}; its first dimension should be {codes.shape[0]}, as that of "
                f"{codes.name}"
            )
    matrices = tuple(
        scheme.matrix(_of_expert(codes, expert), {role: _of_expert(part, expert) for role, part in parts.items()})
        for expert in range(codes.shape[0])
    )
    return StoredTensor(name, sources, matrices, is_of_experts=True)


def _transpose(tensor: SlotTensor, read: Sequence[torch.Tensor]) -> torch.Tensor:
    return tensor.made(read).mT.contiguous()


def _is_shared(part: TensorSource) -> bool:
    """Return True for one number for all experts."""
    return part.shape in {(), (1,)}


def _of_expert(source: TensorSource, expert: int) -> TensorSource:
    if _is_shared(source):
        return source
    part = source.leading_part(expert, source.shape[0])
    return TensorSource(part.name, part.dtype, part.shape[1:], part.extent)
