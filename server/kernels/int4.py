"""Matrices of 4 bits, asymmetric, in groups of 128 inputs, or of fewer where they come so.

Published checkpoints of 4 bits lie in slots so, and experts of older packs. A weight is ``(code - 8) * scale +
centre``. Output channels lie in blocks, the last of which may be filled up:

- ``NAME`` is uint8 ``(blocks, in, block / 2)``: at each input the low halves of the bytes are the codes of the first
  half of the block's channels, the high halves those of the second.
- ``NAME_scale`` is bfloat16 ``(groups, out, 2)``: scale and centre of each group of inputs (the last may be shorter)
  and channel. It is float32 where bfloat16 could not hold them, even with a rest.
- ``NAME_rest``, where there is one, is bfloat16 of the same shape, and to be added to the scales and centres. float16
  numbers have three bits more than bfloat16 has; the sum of two holds them all.
- ``NAME_order``, where there is one, is int32 ``(in,)``: which input each column belongs to.

With blocks of 64 that is what ``aten::_weight_int4pack_mm_for_cpu`` wants on a processor with AVX-512, with blocks of
32 on one with AVX2. The fused product is used where the blocks are those of this processor; elsewhere, for rows that
are not bfloat16, and for many rows, the matrix is dequantised block by block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

import torch
from torch.nn import functional as F

from .batch_invariant import is_batch_invariant
from .pieces import in_order

LARGEST = 15
MIDDLE = 8
GROUP = 128  # inputs
BLOCKS = (64, 32)  # output channels
SCALE = "_scale"
REST = "_rest"
ORDER = "_order"
GROUPS = (128, 64, 32, 16, 8)  # inputs that a group may have
MOST_FUSED_ROWS = 48  # from there on dequantising costs less than a slower product (docs/log.md)
FUSED_GROUPS = (128, 64, 32)  # that the fused product knows
PIECE = 1 << 20  # weights that are dequantised at a time


def specs(name: str, out_features: int, in_features: int, block: int) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Name, dtype and shape of each tensor of a matrix."""
    return [
        (name, torch.uint8, (-(-out_features // block), in_features, block // 2)),
        (name + SCALE, torch.bfloat16, (-(-in_features // GROUP), out_features, 2)),
    ]


def is_quantised(weights: Mapping[str, torch.Tensor], name: str) -> bool:
    return name in weights and weights[name].dtype == torch.uint8


def dequantise(weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """The float32 matrix ``(out, in)``."""
    pieces = [piece.mT.flatten(0, 1) for piece in _dequantised_pieces(weights[name], _scale(weights, name))]
    return in_order(torch.cat(pieces)[: weights[name + SCALE].shape[1]], weights.get(name + ORDER))


def project(
    weights: Mapping[str, torch.Tensor], name: str, rows: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """``(rows, in)`` to ``(rows, out)`` in the dtype of the rows."""
    if name + ORDER in weights:
        rows = rows.index_select(1, weights[name + ORDER])
    blocks, scale, rest = weights[name], weights[name + SCALE], weights.get(name + REST)
    if _can_be_fused(blocks, scale, rows, num_products=1 if rest is None else 2):
        output = _fused(blocks, scale, rows)
        if rest is not None:
            output += _fused(blocks, rest, rows)
    else:
        pieces = _dequantised_pieces(blocks, _scale(weights, name))
        parts = [rows @ piece.to(rows.dtype) for piece in pieces]  # (blocks, rows, block)
        output = torch.cat(parts).transpose(0, 1).flatten(1)[:, : scale.shape[1]]
    return output if bias is None else output + bias


@cache
def native_block() -> int | None:
    """The size of blocks that the fused product takes on this processor; None if it takes neither, or is not there."""
    codes = (torch.arange(64 * GROUP) * 7 // 5 % 16).view(64, GROUP)
    scale = torch.linspace(0.5, 1.5, 128).bfloat16().view(1, 64, 2)
    rows = torch.linspace(-1, 1, GROUP).bfloat16().unsqueeze(0)
    try:
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1).flatten()  # noqa: SLF001
        for block in BLOCKS:
            blocks = _to_blocks(codes.to(torch.uint8), block)
            if torch.equal(packed, blocks.flatten()):
                wanted = rows.float() @ dequantise({"w": blocks, "w" + SCALE: scale}, "w").mT
                return block if torch.allclose(_fused(blocks, scale, rows).float(), wanted, rtol=0.02) else None
    except (RuntimeError, AttributeError):  # another build of torch
        return None
    return None


def _scale(weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """Scales and centres, float32 ``(groups, out, 2)``."""
    scale = weights[name + SCALE].float()
    return scale + weights[name + REST] if name + REST in weights else scale


def _group(in_features: int, scale: torch.Tensor) -> int:
    """The size of groups of which there are so many; where several are possible, there is one group."""
    return next(size for size in GROUPS if -(-in_features // size) == len(scale))


def _can_be_fused(blocks: torch.Tensor, scale: torch.Tensor, rows: torch.Tensor, num_products: int) -> bool:
    is_few = len(rows) * num_products <= MOST_FUSED_ROWS or is_batch_invariant()
    is_fit = rows.dtype == scale.dtype == torch.bfloat16 and rows.device.type == "cpu"
    num_blocks, in_features, half = blocks.shape
    least = FUSED_GROUPS[-1]
    is_whole = num_blocks * 2 * half == scale.shape[1] and in_features % least == 0
    return is_few and is_fit and is_whole and _group(in_features, scale) >= least and native_block() == 2 * half


def _fused(blocks: torch.Tensor, scale: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    num_blocks, in_features, half = blocks.shape
    given = _group(in_features, scale)
    group = next(size for size in FUSED_GROUPS if in_features % size == 0 and size <= given)
    if group != given:  # the last group is shorter
        scale = scale.repeat_interleave(given // group, 0)[: in_features // group].contiguous()
    packed = blocks.view(num_blocks * 2 * half, in_features // 2)
    output: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, packed, group, scale)  # noqa: SLF001
    return output


def _dequantised_pieces(blocks: torch.Tensor, scale: torch.Tensor) -> Iterator[torch.Tensor]:
    """Some blocks of the matrix after the other, float32 ``(blocks, in, block)``, with float32 scales."""
    num_blocks, in_features, half = blocks.shape
    group = _group(in_features, scale)
    factor, centre = scale.unbind(-1)  # (groups, out)
    filling = (0, num_blocks * 2 * half - factor.shape[1])
    shape = (len(scale), num_blocks, 2 * half)
    factors = F.pad(factor, filling).reshape(shape).transpose(0, 1).unsqueeze(2)  # (blocks, groups, 1, block)
    offsets = F.pad(centre - MIDDLE * factor, filling).reshape(shape).transpose(0, 1).unsqueeze(2)
    whole = in_features // group
    count = max(1, PIECE // (in_features * 2 * half))
    for start in range(0, num_blocks, count):
        piece, by, plus = (values[start : start + count] for values in (blocks, factors, offsets))
        values = torch.cat((piece & LARGEST, piece >> 4), 2).float()  # (blocks, in, block)
        groups = values[:, : whole * group].unflatten(1, (whole, group))  # type: ignore[no-untyped-call]
        groups.mul_(by[:, :whole]).add_(plus[:, :whole])
        if in_features % group:
            values[:, whole * group :].mul_(by[:, whole]).add_(plus[:, whole])
        yield values


def _to_blocks(codes: torch.Tensor, block: int) -> torch.Tensor:
    """Codes uint8 ``(out, in)`` to ``(blocks, in, block / 2)``, filled up with zeros."""
    filled = F.pad(codes, (0, 0, 0, -len(codes) % block))
    low, high = filled.view(-1, 2, block // 2, codes.shape[1]).unbind(1)
    return (low | high << 4).mT.contiguous()
