"""Entries of a header whose numbers are of another kind, or do not fit each other, are refused by the tensor's name."""

from __future__ import annotations

import json
import struct
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from expert_store import CheckpointError, read_index

NUMBERS: list[Any] = [-1, 1, 7, 9, 2**31, 2**63, 2**64 + 8, 8.0, 1e308, True, None, "8", [8], {}]


def refuse(path: Path, entry: dict[str, Any]) -> None:
    raw = json.dumps({"t": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(8))
    with pytest.raises(CheckpointError, match=rf"{path.name}: t "):
        read_index([path])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_ends_of_any_kind_but_the_right_one_are_refused(path: Path) -> None:
    for begin, end in product([0, *NUMBERS], [8, *NUMBERS]):
        if (begin, end) != (0, 8) or type(end) is not int:
            refuse(path, {"dtype": "F32", "shape": [2], "data_offsets": [begin, end]})


def test_shapes_of_any_kind_but_the_right_one_are_refused(path: Path) -> None:
    shapes = [[number] for number in NUMBERS] + [[2, number] for number in NUMBERS if number != 1 or number is True]
    for shape in [*shapes, [], [0], "2", 2, None, {"2": 2}, [2**32, 2**32], [2**63, 2]]:
        refuse(path, {"dtype": "F32", "shape": shape, "data_offsets": [0, 8]})


def test_dtypes_of_other_sizes_and_kinds_are_refused(path: Path) -> None:
    for dtype in ("F64", "BF16", "F8_E4M3", "f32", "F4", "", None, 5, ["F32"], {"F32": 1}):
        refuse(path, {"dtype": dtype, "shape": [2], "data_offsets": [0, 8]})
