"""Describes matrices in a slot to the native kernels.

Addresses in a description are offsets in the slot, as ``library.ExpertShape`` expects. The modules of
``server.kernels.formats`` define the formats. If the kernels do not support a variant of a format, there is no
description, and torch computes the product.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from server.kernels.formats import channel_int8, fp4, fp8, group_int4, group_int8
from server.kernels.native.structures.matrices import Format, Matrix

BLOCK = 16  # outputs per block in the int8 and int4 formats of packs
GROUP = 32  # inputs that share a scale in these formats, and in MXFP4
LANES = 16  # weights that are decoded at a time, and share a scale
Q8 = "_q8"
Q4 = "_q4"
PLAIN = {torch.float32: Format.FLOAT32, torch.bfloat16: Format.BFLOAT16, torch.float16: Format.FLOAT16}
SCALES = {
    **PLAIN,
    torch.uint8: Format.E8M0,
    torch.float8_e8m0fnu: Format.E8M0,
    torch.float8_e4m3fn: Format.FP8,
}


class Place(NamedTuple):
    """A tensor of a slot."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int  # bytes


Places = Mapping[str, Place]
Shape = tuple[int, int]  # outputs and inputs


def describe_matrix(
    parameters: Mapping[str, tuple[torch.dtype, tuple[int, ...], int]],
    name: str,
    is_transposed: bool,
    outputs: int,
    inputs: int,
) -> Matrix | None:
    """Describe the matrix of a parameter; None if the kernels do not support its format.

    Args:
        parameters: dtype, shape and offset in bytes of each tensor of a slot.
        name: the parameter, or a part of it such as ``gate_up_proj.0``.
        is_transposed: whether an unquantised matrix is ``(in, out)``.
    """
    places = {key: Place(*value) for key, value in parameters.items()}
    for find in (_q8, _q4, _plain, _int4, _fp4, _fp8, _int8, _int8_groups):
        matrix = find(places, name, (outputs, inputs), is_transposed)
        if matrix is not None:
            return matrix
    return None


def _plain(places: Places, name: str, shape: Shape, is_transposed: bool) -> Matrix | None:
    place = places.get(name)
    if place is None or place.dtype not in PLAIN or place.shape != (shape[::-1] if is_transposed else shape):
        return None
    return _matrix(PLAIN[place.dtype], shape, place, None, is_transposed=is_transposed)


def _q8(places: Places, name: str, shape: Shape, _: bool) -> Matrix | None:
    return _pack(places, name + Q8, Format.Q8, shape)


def _q4(places: Places, name: str, shape: Shape, _: bool) -> Matrix | None:
    return _pack(places, name + Q4, Format.Q4, shape)


def _pack(places: Places, name: str, kind: Format, shape: Shape) -> Matrix | None:
    codes, scales = places.get(name), places.get(f"{name}_scale")
    if codes is None or scales is None:
        return None
    blocks, groups = -(-shape[0] // BLOCK), -(-shape[1] // GROUP)
    numbers_of_word = 4 if kind is Format.Q8 else 8
    if codes.shape != (blocks, groups * GROUP // numbers_of_word, BLOCK, 4):
        return None
    if scales.shape != (blocks, groups, BLOCK) or scales.dtype.itemsize != 2:  # noqa: PLR2004
        return None
    return _matrix(kind, shape, codes, scales)


def _fp4(places: Places, name: str, shape: Shape, _: bool) -> Matrix | None:
    codes, scales, divisor = (places.get(name + suffix) for suffix in (fp4.BLOCKS, fp4.SCALES, fp4.DIVISOR))
    if codes is None or scales is None or len(codes.shape) != 3 or scales.dtype not in SCALES:  # noqa: PLR2004
        return None
    group, kind = 2 * codes.shape[2], SCALES[scales.dtype]
    if (codes.shape[0], codes.shape[1] * group) != shape or scales.shape != codes.shape[:2]:
        return None
    if kind is Format.E8M0 and divisor is None and group == GROUP:
        return _matrix(Format.MXFP4, shape, codes, scales)
    if group % LANES and codes.shape[1] != 1:
        return None
    return _matrix(
        Format.FP4,
        shape,
        codes,
        scales,
        divisor=None if divisor is None else divisor.offset,
        row_block=1,
        column_block=group,
        scale_format=kind,
    )


def _fp8(places: Places, name: str, shape: Shape, _: bool) -> Matrix | None:
    codes, scales = places.get(name), places.get(name + fp8.SCALE)
    if codes is None or scales is None or codes.dtype != torch.float8_e4m3fn or codes.shape != shape:
        return None
    return _in_blocks(Format.FP8, shape, codes, scales)


def _int8(places: Places, name: str, shape: Shape, _: bool) -> Matrix | None:
    codes, scales = places.get(name), places.get(name + channel_int8.SCALE)
    if codes is None or scales is None or codes.dtype != torch.int8 or codes.shape != shape:
        return None
    return _in_blocks(Format.INT8, shape, codes, scales)


def _int8_groups(places: Places, name: str, shape: Shape, _: bool) -> Matrix | None:
    codes, steps, zeros, order = (
        places.get(name + suffix) for suffix in (group_int8.CODES, group_int8.STEPS, group_int8.ZERO, group_int8.ORDER)
    )
    if codes is None or steps is None or codes.dtype != torch.int8 or codes.shape != shape:
        return None
    matrix = _in_blocks(Format.INT8, shape, codes, steps)
    if matrix is not None:
        matrix.zeros = None if zeros is None else zeros.offset
        matrix.order = None if order is None else order.offset
    return matrix


def _int4(places: Places, name: str, shape: Shape, _: bool) -> Matrix | None:
    codes, scales, rest, order = (
        places.get(name + suffix) for suffix in ("", group_int4.SCALE, group_int4.REST, group_int4.ORDER)
    )
    if codes is None or scales is None or codes.dtype != torch.uint8 or scales.dtype not in PLAIN:
        return None
    block = 2 * codes.shape[2]
    if block not in group_int4.BLOCKS or codes.shape[:2] != (-(-shape[0] // block), shape[1]):
        return None
    group = next((size for size in group_int4.GROUPS if -(-shape[1] // size) == scales.shape[0]), None)
    if group is None or scales.shape[1:] != (shape[0], 2) or scales.dtype == torch.float16:
        return None
    return _matrix(
        Format.INT4,
        shape,
        codes,
        scales,
        rest=None if rest is None else rest.offset,
        order=None if order is None else order.offset,
        row_block=1,
        column_block=group,
        scale_format=PLAIN[scales.dtype],
        block=block,
    )


def _in_blocks(kind: Format, shape: Shape, codes: Place, scales: Place) -> Matrix | None:
    """A matrix whose codes are stored row by row, with one scale per block of equal size."""
    rows, columns = (*scales.shape, 1, 1)[:2]
    if scales.dtype not in SCALES or shape[0] % rows or shape[1] % columns:
        return None
    column_block = shape[1] // columns
    if column_block % LANES and columns != 1:
        return None
    return _matrix(
        kind,
        shape,
        codes,
        scales,
        row_block=shape[0] // rows,
        column_block=column_block,
        scale_format=SCALES[scales.dtype],
    )


def _matrix(
    kind: Format, shape: Shape, codes: Place, scales: Place | None, *, is_transposed: bool = False, **others: int | None
) -> Matrix:
    return Matrix(
        format=kind,
        is_transposed=int(is_transposed),
        outputs=shape[0],
        inputs=shape[1],
        data=codes.offset,
        scales=None if scales is None else scales.offset,
        **others,
    )
