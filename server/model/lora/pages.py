"""Divides the matrices of an adapter into pages of equal size, which an expert store reads and evicts.

No matrix crosses a page. An addition whose outputs do not fit into one becomes several with fewer outputs each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import xxhash

from expert_store.catalog import (
    TENSOR_ALIGNMENT,
    ExpertLayout,
    ParameterRecipe,
    ParameterSpec,
    TensorSource,
)
from server.model.adapters.errors import AdapterError
from server.model.lora.pairs import LoraPair
from server.model.lora.targets import LoraTargets
from server.model.lora_adapter import ExpertTarget, LoraAdapter, LoraMatrix

PARAMETER = "page"
LEAST_PAGE_BYTES, MOST_PAGE_BYTES = 1 << 20, 16 << 20
PAGE_RANK = 256  # a page holds a matrix of this rank in float32


def page_layout(targets: LoraTargets) -> ExpertLayout:
    """Return the layout of all pages: large enough for the inputs of every layer, and not much larger."""
    widest = max((inputs for inputs, _ in [*targets.linears.values(), *targets.experts.values()]), default=1)
    nbytes = 1 << math.ceil(math.log2(widest * PAGE_RANK * torch.float32.itemsize))
    nbytes = min(MOST_PAGE_BYTES, max(LEAST_PAGE_BYTES, nbytes))
    return ExpertLayout((ParameterSpec(PARAMETER, torch.uint8, (nbytes,)),))


@dataclass(frozen=True)
class Piece:
    """Matrices of equal shape that a page takes from one tensor of the file.

    Args:
        source: the tensor, or rows of it.
        offset: where the first matrix begins in the page; the others follow at multiples of ``stride``.
        shape: of one matrix.
        num_experts: experts whose columns alternate in the tensor; 0 if its rows are the matrices, one after the other.
        first: the first of these experts.
        is_transposed: whether each matrix is transposed.
    """

    source: TensorSource
    offset: int
    count: int
    shape: tuple[int, int]
    dtype: torch.dtype
    num_experts: int = 0
    first: int = 0
    is_transposed: bool = False

    def check(self, tensor: torch.Tensor) -> None:
        """Raise AdapterError if a tensor has a NaN or an infinite number."""
        if not torch.isfinite(tensor).all():
            file = self.source.extent.source.name
            raise AdapterError(f"{file}: {self.source.name} has values that are not finite; the adapter is damaged")

    @property
    def stride(self) -> int:
        return _aligned(self.nbytes)

    @property
    def nbytes(self) -> int:
        """Bytes of one matrix."""
        return math.prod(self.shape) * self.dtype.itemsize

    def write(self, tensor: torch.Tensor, page: torch.Tensor) -> None:
        """Write the matrices of a tensor into a page."""
        if self.num_experts:
            matrices = tensor.reshape(tensor.shape[0], -1, self.num_experts)  # (outputs, rank, experts)
            matrices = matrices[..., self.first : self.first + self.count].permute(2, 0, 1)
        else:
            matrices = tensor.reshape(self.count, -1, tensor.shape[-1])
        if self.is_transposed:
            matrices = matrices.transpose(1, 2)
        rows, columns = matrices.shape[1:]
        typed, itemsize = page.view(self.dtype), self.dtype.itemsize
        strides = (self.stride // itemsize, columns, 1)
        first = typed.storage_offset() + self.offset // itemsize
        typed.as_strided((self.count, rows, columns), strides, first).copy_(matrices)


@dataclass(frozen=True)
class PlacedMatrix:
    """A float matrix in a page."""

    page: int
    offset: int
    shape: tuple[int, int]
    dtype: torch.dtype

    def view(self, pages: Mapping[tuple[int, torch.dtype], torch.Tensor]) -> torch.Tensor:
        """Return the matrix in pages by number and type, ``(numbers,)`` each."""
        typed = pages[self.page, self.dtype]
        first = typed.storage_offset() + self.offset // self.dtype.itemsize
        return typed.as_strided(self.shape, (self.shape[1], 1), first)


@dataclass(frozen=True)
class PlacedAddition:
    """One addition of an adapter, in its pages."""

    target: str | ExpertTarget
    down: PlacedMatrix
    up: PlacedMatrix
    scale: float
    first_output: int


@dataclass(frozen=True)
class AdapterPages:
    """The pages of an adapter, and the additions in them."""

    page_bytes: int
    pages: tuple[tuple[Piece, ...], ...]
    additions: tuple[PlacedAddition, ...]

    def sources(self, page: int) -> tuple[TensorSource, ...]:
        return tuple(piece.source for piece in self.pages[page])

    def assemble(self, page: int, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the bytes of a page, uint8 ``(page_bytes,)``, from its sources."""
        target = torch.zeros(self.page_bytes, dtype=torch.uint8)
        for piece, tensor in zip(self.pages[page], tensors, strict=True):
            piece.write(tensor, target)
        return target

    def checksum(self, page: int, tensors: Sequence[torch.Tensor]) -> int:
        """Return the checksum of a page.

        Raises:
            AdapterError: a tensor has a NaN or an infinite number.
        """
        for piece, tensor in zip(self.pages[page], tensors, strict=True):
            piece.check(tensor)
        return _checksum(self.assemble(page, tensors))

    def recipes(self, checksums: Sequence[int]) -> list[dict[str, ParameterRecipe]]:
        """Return for each page how a store reads it; a page with another checksum is refused."""
        return [
            {PARAMETER: ParameterRecipe(self.sources(page), _CheckedPage(self, page, checksum))}
            for page, checksum in enumerate(checksums)
        ]

    def adapter(self, name: str, pages: Sequence[torch.Tensor]) -> LoraAdapter:
        """Return the adapter whose matrices are views of some pages in memory, uint8 ``(page_bytes,)`` each."""
        linears: dict[str, list[LoraMatrix]] = {}
        experts: dict[ExpertTarget, list[LoraMatrix]] = {}
        places = {(each.page, each.dtype) for addition in self.additions for each in (addition.down, addition.up)}
        typed = {(page, dtype): pages[page].view(dtype) for page, dtype in places}
        for each in self.additions:
            matrix = LoraMatrix(each.down.view(typed), each.up.view(typed), each.scale, each.first_output)
            if isinstance(each.target, ExpertTarget):
                experts.setdefault(each.target, []).append(matrix)
            else:
                linears.setdefault(each.target, []).append(matrix)
        return LoraAdapter(
            name,
            {target: tuple(matrices) for target, matrices in linears.items()},
            {target: tuple(matrices) for target, matrices in experts.items()},
        )


def _checksum(page: torch.Tensor) -> int:
    return xxhash.xxh3_64_intdigest(page.numpy().data)


@dataclass(frozen=True)
class _CheckedPage:
    """Assembles a page, and refuses one whose bytes are not those that were checked when it was registered."""

    pages: AdapterPages
    page: int
    checksum: int

    def __call__(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        page = self.pages.assemble(self.page, tensors)
        if _checksum(page) != self.checksum:
            name = self.pages.sources(self.page)[0].extent.source.name
            raise AdapterError(f"{name} has changed since the adapter was loaded; load it again")
        return page


def divide(pairs: Sequence[LoraPair], page_bytes: int) -> AdapterPages:
    """Divide the matrices of an adapter into pages.

    Raises:
        AdapterError: a matrix is larger than a page.
    """
    writer = _PageWriter(page_bytes)
    additions = [addition for pair in pairs for addition in _place(pair, writer)]
    return AdapterPages(page_bytes, tuple(map(tuple, writer.pages)), tuple(additions))


class _PageWriter:
    """Fills one page after the other."""

    def __init__(self, page_bytes: int):
        self.page_bytes = page_bytes
        self.pages: list[list[Piece]] = []
        self._end = page_bytes

    def most_fitting(self, nbytes: int) -> int:
        """Return how many matrices fit into the rest of this page, or into a new one if none does."""
        left = (self.page_bytes - self._end) // _aligned(nbytes)
        return left or self.page_bytes // _aligned(nbytes)

    def most_fitting_rows(self, row_bytes: int) -> int:
        """Return how many rows of a matrix fit into the rest of this page, or into a new one if less than a half."""
        left = self.page_bytes - self._end
        return (left if left * 2 >= self.page_bytes else self.page_bytes) // row_bytes

    def place(
        self, source: TensorSource, shape: tuple[int, int], pair: LoraPair, count: int, **columns: int
    ) -> list[PlacedMatrix]:
        """Place matrices of one tensor in a page, which must fit it."""
        piece = Piece(source, self._end, count, shape, pair.dtype, is_transposed=pair.is_swapped, **columns)
        if not self.pages or self._end + count * piece.stride > self.page_bytes:
            self.pages.append([])
            piece, self._end = replace(piece, offset=0), 0
        self.pages[-1].append(piece)
        page, offset = len(self.pages) - 1, piece.offset
        self._end += count * piece.stride
        return [PlacedMatrix(page, offset + index * piece.stride, shape, pair.dtype) for index in range(count)]


def _place(pair: LoraPair, writer: _PageWriter) -> Iterator[PlacedAddition]:
    inputs, outputs = pair.down.shape[1], pair.up.shape[0]
    if pair.num_experts:
        yield from _place_experts(pair, writer, inputs, outputs)
        return
    itemsize = pair.dtype.itemsize
    if writer.most_fitting(inputs * pair.rank * itemsize) < 1:
        raise _too_large(pair, inputs * pair.rank * itemsize, writer)
    down = writer.place(pair.down, (pair.rank, inputs), pair, 1)[0]
    target = (
        pair.target if isinstance(pair.target, str) else ExpertTarget(pair.target[0], pair.expert or 0, pair.target[1])
    )
    first = 0
    while first < outputs:
        num_rows = min(outputs - first, writer.most_fitting_rows(pair.rank * itemsize))
        rows = pair.up.rows(first, num_rows)
        up = writer.place(rows, (num_rows, pair.rank), pair, 1)[0]
        yield PlacedAddition(target, down, up, pair.scale, pair.first_output + first)
        first += num_rows


def _place_experts(pair: LoraPair, writer: _PageWriter, inputs: int, outputs: int) -> Iterator[PlacedAddition]:
    """Place the additions to one parameter of all experts, some experts after the other."""
    assert not isinstance(pair.target, str)
    layer, parameter = pair.target
    stored_down, stored_up = (pair.rank, inputs), (outputs, pair.rank)
    if pair.is_swapped:
        stored_down, stored_up = stored_down[::-1], stored_up[::-1]
    downs = _place_columns_or_rows(pair, writer, pair.down, stored_down, by_columns=False)
    ups = _place_columns_or_rows(pair, writer, pair.up, stored_up, by_columns=True)
    for expert, (down, up) in enumerate(zip(downs, ups, strict=True)):
        if pair.is_swapped:
            down, up = up, down  # noqa: PLW2901
        yield PlacedAddition(ExpertTarget(layer, expert, parameter), down, up, pair.scale, 0)


def _place_columns_or_rows(
    pair: LoraPair, writer: _PageWriter, source: TensorSource, shape: tuple[int, int], *, by_columns: bool
) -> list[PlacedMatrix]:
    """Place one tensor's matrices of all experts, as many in a page as fit."""
    nbytes, placed = math.prod(shape) * pair.dtype.itemsize, list[PlacedMatrix]()
    while len(placed) < pair.num_experts:
        first = len(placed)
        count = min(pair.num_experts - first, writer.most_fitting(nbytes))
        if count < 1:
            raise _too_large(pair, nbytes, writer)
        if by_columns:
            placed += writer.place(source, shape, pair, count, num_experts=pair.num_experts, first=first)
        else:
            placed += writer.place(source.rows(first * pair.rank, count * pair.rank), shape, pair, count)
    return placed


def _too_large(pair: LoraPair, nbytes: int, writer: _PageWriter) -> AdapterError:
    return AdapterError(
        f"{pair.down.name}: a matrix of {nbytes} bytes does not fit into a page of {writer.page_bytes}; use a lower "
        f"rank than {pair.rank}, or 16-bit floats"
    )


def _aligned(nbytes: int) -> int:
    return -(-nbytes // TENSOR_ALIGNMENT) * TENSOR_ALIGNMENT
