"""Metadata files are regular, of bounded size and depth, and read without waiting for anybody."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from expert_store import CheckpointError, find_shards, read_index, read_json_object, read_manifest
from expert_store.io.metadata import MAX_DEPTH, MAX_METADATA_BYTES


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def make_huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MAX_METADATA_BYTES + 1)


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pipe": (os.mkfifo, "is not a regular file"),
    "a device without end": (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
    "a socket": (make_socket, "cannot read .*: No such device"),
    "a folder": (Path.mkdir, "is not a regular file"),
    "a link to nothing": (lambda path: path.symlink_to("nowhere"), "cannot read .*: No such file"),
    "a file beyond the limit": (make_huge, f"bytes long, more than {MAX_METADATA_BYTES}"),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("config.json", lambda folder: read_json_object(folder / "config.json")),
        ("model.safetensors.index.json", find_shards),
        ("manifest.json", read_manifest),
    ],
)
def test_what_is_no_bounded_regular_file_is_refused(
    tmp_path: Path, kind: str, name: str, read: Callable[[Path], object]
) -> None:
    make, complaint = ODD[kind]
    make(tmp_path / name)
    with pytest.raises(CheckpointError, match=f"{name}.*{complaint}|{complaint}"):
        read(tmp_path)


@pytest.mark.parametrize("kind", [kind for kind in ODD if "limit" not in kind])
def test_a_shard_that_is_no_regular_file_is_refused(tmp_path: Path, kind: str) -> None:
    make, complaint = ODD[kind]
    make(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=complaint):
        read_index(find_shards(tmp_path))


def test_objects_as_deep_as_the_limit_are_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a":' * MAX_DEPTH + "1" + "}" * MAX_DEPTH)
    assert read_json_object(path)["a"]
    path.write_text('{"a":' * (MAX_DEPTH + 1) + "1" + "}" * (MAX_DEPTH + 1))
    with pytest.raises(CheckpointError, match=r"config\.json is nested too deeply; download the checkpoint again"):
        read_json_object(path)


def test_a_refused_file_is_closed(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with pytest.raises(CheckpointError):
            read_json_object(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
