"""Describes matrices that lie in a slot to the native kernels.

Addresses in a description are offsets in the slot; ``library.ExpertShape`` takes them so. The formats are those of the
modules of ``server.kernels``, whose docstrings say what lies in a slot. Where a format has a variant that the kernels
do not know, there is no description, and the matrix is the reference's affair.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from server.kernels import fp4

from .library import Format, Matrix

BLOCK = 16  # outputs that lie together in packs of 8 and 4 bits
GROUP = 32  # inputs that share a scale in them, and in MXFP4
LANES = 16  # weights that are decoded at a time; a group of them has one scale
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


def describe(
    parameters: Mapping[str, tuple[torch.dtype, tuple[int, ...], int]],
    name: str,
    is_transposed: bool,
    outputs: int,
    inputs: int,
) -> Matrix | None:
    """The matrix of a parameter, or of a part of it as ``gate_up_proj.0``; None if the kernels do not know its format.

    Args:
        parameters: dtype, shape and offset in bytes of each tensor of a slot.
        is_transposed: whether the matrix lies ``(in, out)`` where it is of a plain format.
    """
    places = {key: Place(*value) for key, value in parameters.items()}
    for find in (_q8, _q4, _plain, _fp4):
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
    return None


def _matrix(
    kind: Format, shape: Shape, codes: Place, scales: Place | None, *, is_transposed: bool = False, **others: int
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
