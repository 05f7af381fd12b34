"""A library whose structures differ from their mirrors in Python is refused."""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import Structure, c_float, c_int32
from enum import IntEnum
from typing import Any

import pytest

from server.kernels.native import library, mirrors
from server.kernels.native.structures.experts import Gate
from tests.server.kernels.native.conftest import FOUND

pytestmark = pytest.mark.skipif(FOUND.reason is not None, reason=f"no native kernels: {FOUND.reason}")

FIELDS = list(Gate._fields_)


@pytest.fixture(autouse=True)
def loads_again() -> Iterator[None]:
    library.load.cache_clear()
    yield
    library.load.cache_clear()


def gate(fields: list[tuple[str, Any]]) -> type[Structure]:
    return type("Gate", (Structure,), {"_fields_": fields})


@pytest.mark.parametrize(
    ("mirror", "name"),
    [
        (gate([FIELDS[0], ("gates", c_int32), *FIELDS[2:]]), "Gate.gates"),
        (gate([FIELDS[1], FIELDS[0], *FIELDS[2:]]), "Gate.has_gate"),
        (gate([*FIELDS[:-1], ("limit", c_float * 2)]), "Gate.limit"),
        (gate(FIELDS[:-1]), "Gate.limit"),
        (gate([*FIELDS, ("beta", c_float)]), "Gate.beta"),
        (IntEnum("RopeKind", {"NONE": 0, "HALVES": 2, "INTERLEAVED": 1}), "RopeKind.HALVES"),
        (type("Unknown", (Structure,), {"_fields_": []}), "Unknown"),
    ],
)
def test_a_structure_that_differs_is_named(mirror: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    others = tuple(known for known in mirrors.MIRRORED if known.__name__ != mirror.__name__)
    monkeypatch.setattr(mirrors, "MIRRORED", (*others, mirror))
    with pytest.raises(library.KernelError) as refusal:
        library.load()
    reason = f"libgreenroom_kernels.so is from another version of Greenroom ({name} differs); install Greenroom again"
    assert str(refusal.value) == reason


def test_a_structure_without_a_mirror_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrors, "MIRRORED", tuple(known for known in mirrors.MIRRORED if known is not Gate))
    with pytest.raises(library.KernelError, match=r"\(Gate differs\)"):
        library.load()
