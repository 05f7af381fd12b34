"""Damaged checkpoints are refused by name before any data is read."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from expert_store import CheckpointError, find_shards, read_index, read_tensor
from expert_store.io.safetensors_index import BEGIN_BYTES


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(begin: int, end: int, shape: list[Any] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


def test_tensors_are_read_as_safetensors_wrote_them(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 5), "b": torch.randn(7).bfloat16(), "c": torch.arange(4)}
    save_file(tensors, tmp_path / "model.safetensors")
    index = read_index(find_shards(tmp_path))
    assert all(torch.equal(read_tensor(index[name]), tensor) for name, tensor in tensors.items())


def test_a_header_longer_than_the_first_read_is_read_to_its_end(tmp_path: Path) -> None:
    tensors = {f"{number:0200}": torch.full((2,), float(number)) for number in range(600)}
    save_file(tensors, tmp_path / "many.safetensors")
    index = read_index([tmp_path / "many.safetensors"])
    assert index.keys() == tensors.keys()
    last = max(tensors)
    assert index[last].extent.offset > BEGIN_BYTES
    assert torch.equal(read_tensor(index[last]), tensors[last])


def test_a_second_copy_in_another_format_is_left_out(tmp_path: Path) -> None:
    for name in ("consolidated.safetensors", "model.safetensors"):
        save_file({name: torch.zeros(1)}, tmp_path / name)
    assert [source.short_name for source in find_shards(tmp_path)] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("header", "data", "length", "message"),
    [
        (b"", b"", 1 << 63, "claims to be"),
        (b"{}", b"", 3, "claims to be"),
        (b"\xff\xfe", b"", None, "it is not JSON"),
        (b"[" * 100_000, b"", None, "nested too deeply"),
        (b'{"t":' * 100 + b"1" + b"}" * 100, b"", None, "nested too deeply"),
        (b"[1]", b"", None, "not a JSON object"),
        (b"{nope", b"", None, "it is not JSON"),
        ({"t": {"dtype": "F32"}}, b"", None, "t lacks dtype"),
        ({"t": entry(0, 8, dtype="F3")}, b"x" * 8, None, "unknown dtype 'F3'"),
        ({"t": {**entry(0, 8), "dtype": ["F32"]}}, b"x" * 8, None, r"unknown dtype \['F32'\]"),
        ({"t": entry(0, 8, [-1])}, b"x" * 8, None, "t has the shape"),
        ({"t": entry(0, 8, [True, 2])}, b"x" * 8, None, "t has the shape"),
        ({"t": entry(0, 8, [3])}, b"x" * 8, None, "takes 12, not 8 bytes"),
        ({"t": entry(0, 8, [2**40, 2**40])}, b"x" * 8, None, "not 8 bytes"),
        ({"t": entry(0, 16)}, b"x" * 8, None, "cut short"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, b"x" * 12, None, "b overlaps"),
        ({"a": entry(0, 4), "b": entry(8, 12)}, b"x" * 12, None, "b leaves a gap"),
        ({"a": entry(0, 4)}, b"x" * 12, None, "8 bytes after the last tensor"),
    ],
)
def test_a_damaged_header_is_refused(
    tmp_path: Path, header: Any, data: bytes, length: int | None, message: str
) -> None:
    path = write(tmp_path / "bad.safetensors", header, data, length)
    with pytest.raises(CheckpointError, match=message):
        read_index([path])


def test_a_file_too_short_for_a_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"abc")
    with pytest.raises(CheckpointError, match="too short"):
        read_index([path])


def test_one_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({"t": torch.zeros(2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match="t is in both"):
        read_index(find_shards(tmp_path))


def test_a_folder_of_pickles_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    with pytest.raises(CheckpointError, match="pickled checkpoints"):
        find_shards(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ('{"weight_map": {"t": "gone.safetensors"}}', r"gone\.safetensors is missing"),
        *(
            (json.dumps({"weight_map": {"t": name}}), r"which is no \.safetensors file of its folder")
            for name in (
                "../../etc/passwd",
                "/etc/a.safetensors",
                "..",
                "a\0.safetensors",
                "a\ud800.safetensors",
                "x" * 5000 + ".safetensors",
                "pytorch_model.bin",
                5,
                ["a.safetensors"],
            )
        ),
        ('{"weight_map": 5}', "not a safetensors index"),
        ("[]", "is not a JSON object"),
        ("{", "it is not JSON"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_bad_shard_index_is_refused(tmp_path: Path, index: str, message: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=message):
        find_shards(tmp_path)
