"""Compares the mirrored structures and enumerations with those that the library was compiled from."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from ctypes import POINTER, Structure, c_char_p, c_int64
from enum import IntEnum

from server.kernels.native.structures import adapters, decode_run, experts, layers, matrices, mixers, sampling

MODULES = (matrices, experts, layers, mixers, adapters, sampling, decode_run)
MIRRORED = tuple(
    mirror
    for module in MODULES
    for mirror in vars(module).values()
    if isinstance(mirror, type) and issubclass(mirror, Structure | IntEnum) and mirror.__module__ == module.__name__
)
Shape = tuple[int, tuple[tuple[str, int, int], ...]]  # bytes; name, offset or number, and bytes of each field


class _Field(Structure):
    _fields_ = [("name", c_char_p), ("offset", c_int64), ("bytes", c_int64)]


class _Layout(Structure):
    _fields_ = [("name", c_char_p), ("bytes", c_int64), ("fields", POINTER(_Field)), ("num_fields", c_int64)]


class Layouts(Structure):
    """The result of ``greenroom_layouts`` (``src/structures.h``)."""

    _fields_ = [("layouts", POINTER(_Layout)), ("count", c_int64)]


def difference(compiled: Layouts) -> str | None:
    """Return the first name whose layout is another in the library, such as ``Matrix.block``; None if all agree."""
    theirs = dict(_compiled(compiled))
    ours = {mirror.__name__: _mirrored(mirror) for mirror in MIRRORED}
    for name in ours | theirs:
        if ours.get(name) != theirs.get(name):
            return f"{name}{_field(ours.get(name), theirs.get(name))}"
    return None


def _compiled(compiled: Layouts) -> Iterator[tuple[str, Shape]]:
    for layout in compiled.layouts[: compiled.count]:
        fields = ((field.name.decode(), field.offset, field.bytes) for field in layout.fields[: layout.num_fields])
        yield layout.name.decode(), (layout.bytes, tuple(fields))


def _mirrored(mirror: type[Structure | IntEnum]) -> Shape:
    if issubclass(mirror, IntEnum):
        return ctypes.sizeof(ctypes.c_int32), tuple((name, each.value, 0) for name, each in mirror.__members__.items())
    places = ((name, getattr(mirror, name)) for name, *_ in mirror._fields_)
    return ctypes.sizeof(mirror), tuple((name, place.offset, place.size) for name, place in places)


def _field(ours: Shape | None, theirs: Shape | None) -> str:
    """Return the first field that differs, after a dot; nothing if only one side has the structure."""
    if ours is None or theirs is None:
        return ""
    for one, other in zip((*ours[1], None), (*theirs[1], None), strict=False):
        if one != other:
            return f".{(one or other or ('',))[0]}"
    return ""
