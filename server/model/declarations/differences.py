"""Compares two declarations of one model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import numpy as np

from server.model.declarations.declaration import Declaration


def differences(declared: Declaration, found: Declaration) -> Iterator[str]:
    """Yield what differs, in words: where, what was declared and what was found.

    Numbers are equal if they are in float32.
    """
    yield from _between("", declared, found)


def _between(place: str, one: Any, other: Any) -> Iterator[str]:
    if is_dataclass(one) and type(one) is type(other):
        for each in fields(one):
            inside = f"{place}.{each.name}".lstrip(".")
            yield from _between(inside, getattr(one, each.name), getattr(other, each.name))
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            yield f"{place}: {len(one)} were declared, and {len(other)} were found"
            return
        for index, pair in enumerate(zip(one, other, strict=True)):
            yield from _between(f"{place}[{index}]", *pair)
    elif isinstance(one, Mapping) and isinstance(other, Mapping):
        if dict(one) != dict(other):
            yield f"{place}: {dict(one)} was declared, and {dict(other)} was found"
    elif not _are_equal(one, other):
        yield f"{place}: {_shown(one)} was declared, and {_shown(other)} was found"


def _are_equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) or isinstance(other, float):
        are_numbers = isinstance(one, float | int) and isinstance(other, float | int)
        return are_numbers and bool(np.float32(one) == np.float32(other))
    return bool(one == other)


def _shown(value: Any) -> str:
    if isinstance(value, Enum):
        return value.name
    return type(value).__name__ if is_dataclass(value) else repr(value)
