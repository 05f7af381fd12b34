"""Matrices of 4-bit integers, asymmetric, with a scale per group of up to 128 inputs: published 4-bit checkpoints.

Experts of older packs have this format too. A weight is ``(code - 8) * scale + centre``. Output channels are stored in
blocks; the last block may be padded:

- ``NAME`` is uint8 ``(blocks, in, block / 2)``: for each input, the low halves of the bytes are the codes of the first
  half of the block's channels, and the high halves those of the second half.
- ``NAME_scale`` is bfloat16 ``(groups, out, 2)``: scale and centre of each channel and group of inputs; the last group
  may be shorter. It is float32 if bfloat16 could not hold them, even with a rest.
- ``NAME_rest``, optional, is bfloat16 of the same shape, and is added to the scales and centres. float16 has three bits
  more than bfloat16; the sum of two bfloat16 numbers holds them all.
- ``NAME_order``, optional, is int32 ``(in,)``: the input that each column belongs to.

``aten::_weight_int4pack_mm_for_cpu`` takes blocks of 64 on a processor with AVX-512, and blocks of 32 on one with AVX2.
This fused product is used if the blocks are those of this processor. Otherwise, for rows that are not bfloat16, and
for many rows, the matrix is dequantised some blocks at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

import torch
from torch.nn import functional as F

from server.kernels.batch_invariant import is_batch_invariant
from server.kernels.formats.chunked import in_order
from server.kernels.native import slot_format
from server.kernels.native.slot_format import Places, Shape, Tag
from server.kernels.native.structures.matrices import Format, Matrix

LARGEST = 15
MIDDLE = 8
GROUP = 128  # inputs
BLOCKS = (64, 32)  # output channels
SCALE = "_scale"
REST = "_rest"
ORDER = "_order"
GROUPS = (128, 64, 32, 16, 8)  # supported group sizes, in inputs
# With more rows, dequantising costs less than the slower fused product; measured in
# benchmarks/results/2026-11-24-unnamed/formats-of-packed-experts.json.
MOST_FUSED_ROWS = 48
FUSED_GROUPS = (128, 64, 32)  # group sizes of the fused product
CHUNK_WEIGHTS = 1 << 20  # dequantised at a time
KINDS = (Format.INT4,)  # in the native kernels
TAG = Tag("", torch.uint8)


def specs(name: str, out_features: int, in_features: int, block: int) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Name, dtype and shape of each tensor of a matrix."""
    return [
        (name, torch.uint8, (-(-out_features // block), in_features, block // 2)),
        (name + SCALE, torch.bfloat16, (-(-in_features // GROUP), out_features, 2)),
    ]


def dequantise(weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """The float32 matrix ``(out, in)``."""
    chunks = [chunk.mT.flatten(0, 1) for chunk in _dequantised_chunks(weights[name], _scale(weights, name))]
    return in_order(torch.cat(chunks)[: weights[name + SCALE].shape[1]], weights.get(name + ORDER))


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
        chunks = _dequantised_chunks(blocks, _scale(weights, name))
        parts = [rows @ chunk.to(rows.dtype) for chunk in chunks]  # (blocks, rows, block)
        output = torch.cat(parts).transpose(0, 1).flatten(1)[:, : scale.shape[1]]
    return output if bias is None else output + bias


@cache
def native_block() -> int | None:
    """The block size of the fused product on this processor; None if it takes no size in ``BLOCKS`` or is missing."""
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
    except (RuntimeError, AttributeError):  # a build of torch without the fused product
        return None
    return None


def describe(places: Places, name: str, shape: Shape) -> Matrix | None:
    """Describe a matrix to the native kernels; None if they do not support it."""
    codes, scales, rest, order = (places.get(name + suffix) for suffix in ("", SCALE, REST, ORDER))
    if codes is None or scales is None or codes.dtype != torch.uint8 or scales.dtype not in slot_format.PLAIN:
        return None
    block = 2 * codes.shape[2]
    if block not in BLOCKS or codes.shape[:2] != (-(-shape[0] // block), shape[1]):
        return None
    group = next((size for size in GROUPS if -(-shape[1] // size) == scales.shape[0]), None)
    if group is None or scales.shape[1:] != (shape[0], 2) or scales.dtype == torch.float16:
        return None
    return slot_format.matrix(
        Format.INT4,
        shape,
        codes,
        scales,
        rest=None if rest is None else rest.offset,
        order=None if order is None else order.offset,
        row_block=1,
        column_block=group,
        scale_format=slot_format.PLAIN[scales.dtype],
        block=block,
    )


def _scale(weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """Scales and centres, float32 ``(groups, out, 2)``."""
    scale = weights[name + SCALE].float()
    return scale + weights[name + REST] if name + REST in weights else scale


def _group(in_features: int, scale: torch.Tensor) -> int:
    """The group size, from the number of groups; several sizes fit only if there is one group."""
    return next(size for size in GROUPS if -(-in_features // size) == len(scale))


def _can_be_fused(blocks: torch.Tensor, scale: torch.Tensor, rows: torch.Tensor, num_products: int) -> bool:
    is_few = len(rows) * num_products <= MOST_FUSED_ROWS or is_batch_invariant()
    is_fit = rows.dtype == scale.dtype == torch.bfloat16 and rows.device.type == "cpu"
    num_blocks, in_features, half = blocks.shape
    least = FUSED_GROUPS[-1]
    is_complete = num_blocks * 2 * half == scale.shape[1] and in_features % least == 0
    return is_few and is_fit and is_complete and _group(in_features, scale) >= least and native_block() == 2 * half


def _fused(blocks: torch.Tensor, scale: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    num_blocks, in_features, half = blocks.shape
    given = _group(in_features, scale)
    group = next(size for size in FUSED_GROUPS if in_features % size == 0 and size <= given)
    if group != given:  # the last group is shorter
        scale = scale.repeat_interleave(given // group, 0)[: in_features // group].contiguous()
    packed = blocks.view(num_blocks * 2 * half, in_features // 2)
    output: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, packed, group, scale)  # noqa: SLF001
    return output


def _dequantised_chunks(blocks: torch.Tensor, scale: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the matrix, some blocks at a time, as float32 ``(blocks, in, block)``; scales are float32."""
    num_blocks, in_features, half = blocks.shape
    group = _group(in_features, scale)
    factor, centre = scale.unbind(-1)  # (groups, out)
    padding = (0, num_blocks * 2 * half - factor.shape[1])
    shape = (len(scale), num_blocks, 2 * half)
    factors = F.pad(factor, padding).reshape(shape).transpose(0, 1).unsqueeze(2)  # (blocks, groups, 1, block)
    offsets = F.pad(centre - MIDDLE * factor, padding).reshape(shape).transpose(0, 1).unsqueeze(2)
    complete = in_features // group
    count = max(1, CHUNK_WEIGHTS // (in_features * 2 * half))
    for start in range(0, num_blocks, count):
        chunk, by, plus = (values[start : start + count] for values in (blocks, factors, offsets))
        values = torch.cat((chunk & LARGEST, chunk >> 4), 2).float()  # (blocks, in, block)
        groups = values[:, : complete * group].unflatten(1, (complete, group))  # type: ignore[no-untyped-call]
        groups.mul_(by[:, :complete]).add_(plus[:, :complete])
        if in_features % group:
            values[:, complete * group :].mul_(by[:, complete]).add_(plus[:, complete])
        yield values


def _to_blocks(codes: torch.Tensor, block: int) -> torch.Tensor:
    """Codes uint8 ``(out, in)`` to ``(blocks, in, block / 2)``, padded with zeros."""
    filled = F.pad(codes, (0, 0, 0, -len(codes) % block))
    low, high = filled.view(-1, 2, block // 2, codes.shape[1]).unbind(1)
    return (low | high << 4).mT.contiguous()
