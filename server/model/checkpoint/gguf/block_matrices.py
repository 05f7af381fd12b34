"""Matrices of ggml's types, as they are read into slots and dequantised."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter

import torch

from expert_store import BlockType, GgufTensor, PartOf, TensorSource
from server.kernels.formats.ggml_types import GGML_TYPES
from server.model.quantised.column_order import ORDER, OrderedColumns
from server.model.quantised.divided import Divided, divisor_of
from server.model.quantised.latent_expansion import KEYS, VALUES, LatentExpansion
from server.model.quantised.linear import LinearFormat
from server.model.quantised.matrix import SlotTensor, StoredMatrix
from server.model.quantised.packed_matrix import PackedMatrix

Join = Callable[[Sequence[torch.Tensor]], torch.Tensor]
KINDS = {kind.name: kind for kind in GGML_TYPES.values()}


def stored_matrix(
    block: BlockType, shape: tuple[int, int], source: TensorSource, factor: TensorSource | None = None
) -> StoredMatrix:
    """Return the matrix ``(out, in)`` of an expert; it is repacked while it is read, with nothing lost.

    Args:
        source: uint8 ``(out, row_bytes)``.
        factor: a number that multiplies all weights, if there is one.
    """
    tensors = _slot_tensors(block, shape, (source,), itemgetter(0))
    return StoredMatrix(shape, tensors if factor is None else (*tensors, divisor_of(factor)), is_out_in=True)


def packed_matrix(
    block: BlockType,
    shape: tuple[int, int],
    sources: tuple[TensorSource, ...],
    join: Join,
    *,
    keeps_rows: bool = False,
    order: torch.Tensor | None = None,
    factor: TensorSource | None = None,
) -> PackedMatrix:
    """Return a matrix of the trunk that stays quantised.

    Args:
        sources: uint8 ``(rows, row_bytes)`` each.
        join: makes one matrix of their rows.
        keeps_rows: whether that is the only source as it is.
        order: the input that each column belongs to, if it is not that of its place.
        factor: a number that multiplies all weights, if there is one.
    """
    kind: LinearFormat = KINDS[block.name]
    tensors = _slot_tensors(block, shape, sources, join)
    if factor is not None:
        kind, tensors = Divided(kind), (*tensors, divisor_of(factor))
    if order is None:
        outputs, inputs = shape
        is_divisible = keeps_rows and factor is None and len(tensors) == len(kind.specs("", kind.OUTPUTS, inputs))

        def rows(first: int, count: int) -> PackedMatrix:
            return packed_matrix(block, (count, inputs), (sources[0].rows(first, count),), join)

        return PackedMatrix(kind, tensors, rows if is_divisible and outputs % kind.OUTPUTS == 0 else None)
    of_columns = SlotTensor(ORDER, torch.int32, tuple(order.shape), (), lambda _: order.to(torch.int32))
    return PackedMatrix(OrderedColumns(kind), (*tensors, of_columns))


def packed_expansion(keys: GgufTensor, values: GgufTensor) -> PackedMatrix:
    """Return the expansion of latents, whose two halves stay quantised.

    Args:
        keys: ``(heads, rank, nope)``.
        values: ``(heads, value, rank)``.
    """
    heads, rank, nope_dim = keys.shape
    form = LatentExpansion(KINDS[keys.type.name], KINDS[values.type.name], heads, rank, nope_dim, values.shape[1])
    tensors = [
        _slot_tensors(tensor.type, shape, (tensor.source,), _of_all_heads, name)
        for tensor, shape, name in zip((keys, values), form.shapes, (KEYS, VALUES), strict=True)
    ]
    return PackedMatrix(form, (*tensors[0], *tensors[1]))


def _of_all_heads(sources: Sequence[torch.Tensor]) -> torch.Tensor:
    return sources[0].flatten(0, 1)


def _slot_tensors(
    block: BlockType, shape: tuple[int, int], sources: tuple[TensorSource, ...], join: Join, name: str = ""
) -> tuple[SlotTensor, ...]:
    kind = KINDS[block.name]

    def repack(
        sources: Sequence[torch.Tensor], into: Mapping[str, torch.Tensor] | None = None
    ) -> Mapping[str, torch.Tensor]:
        return kind.repack(name, join(sources).contiguous(), shape[1], into)

    return tuple(
        SlotTensor(suffix, dtype, tuple(size), sources, PartOf(repack, suffix))
        for suffix, dtype, size in kind.specs(name, *shape)
    )


def dequantise_blocks(block: BlockType, raw: torch.Tensor) -> torch.Tensor:
    """Return a tensor in float32.

    Args:
        raw: the numbers of a plain type, or uint8 ``(..., row_bytes)``.
    """
    if block.dtype is not None:
        return raw.float()
    kind, inputs = KINDS[block.name], raw.shape[-1] // block.nbytes * block.inputs
    return kind.dequantise_rows(raw.flatten(0, -2), inputs).view(*raw.shape[:-1], inputs)
