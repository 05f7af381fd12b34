"""A packed folder is checked whole before it is used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash

from expert_store import CheckpointError, ExpertLoadError, Manifest, is_pack, open_pack, read_manifest
from tests.expert_store.packs import LAYOUT, make_source, pack, served

Change = Callable[[dict[str, Any]], None]
FIRST = "experts-00000.pack"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    pack(make_source(tmp_path / "model"), tmp_path / "out")
    return tmp_path / "out"


def forge(folder: Path, change: Change) -> None:
    """Change a manifest and give it the checksum that it should have then."""
    path = folder / "manifest.json"
    content = json.loads(path.read_bytes())
    change(content)
    del content["checksum"]
    raw = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    path.write_text(json.dumps(content | {"checksum": xxhash.xxh3_64_hexdigest(raw)}))


def data_folder(out: Path) -> Path:
    return out / read_manifest(out).data


def test_a_pack_is_told_from_a_checkpoint(out: Path, tmp_path: Path) -> None:
    assert is_pack(out)
    assert not is_pack(tmp_path / "model")


def test_a_manifest_survives_being_written_and_read(out: Path) -> None:
    manifest = read_manifest(out)
    assert isinstance(manifest, Manifest)
    assert manifest.to_bytes() == (out / "manifest.json").read_bytes()
    assert manifest.expert_layouts() == [LAYOUT]


@pytest.mark.slow
def test_every_flipped_bit_of_a_manifest_is_found_out(out: Path) -> None:
    path = out / "manifest.json"
    sound = path.read_bytes()
    for position in range(0, len(sound) - 1, 3):
        path.write_bytes(sound[:position] + bytes([sound[position] ^ 1 << position % 8]) + sound[position + 1 :])
        with pytest.raises(CheckpointError, match=r"manifest\.json .*pack the model again"):
            read_manifest(out)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"null", b"[" * 100_000, b'{"format": "other"}'])
def test_what_is_no_manifest_is_refused(out: Path, content: bytes) -> None:
    (out / "manifest.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="pack the model again"):
        open_pack(out)


def swap(content: dict[str, Any]) -> None:
    one, other = content["layers"]["0"]["records"], content["layers"]["1"]["records"]
    one[2], other[2] = other[2], one[2]


FORGERIES: dict[str, tuple[Change, str]] = {
    "another version": (lambda m: m.update(version=2), "has version 2 and this Greenroom reads version 1"),
    "a missing key": (lambda m: m.pop("layers"), "layers: Field required"),
    "a key too many": (lambda m: m.update(more=1), "more: Extra inputs are not permitted"),
    "a data folder outside": (
        lambda m: m.update(data="../model"),
        "data: .*'../model' is not the name of a file inside",
    ),
    "a file outside": (
        lambda m: m["files"].update({"../model/config.json": [25, None]}),
        "not the name of a file insi",
    ),
    "a file in a folder": (lambda m: m["files"].update({"a/config.json": [25, None]}), "is not a plain file name"),
    "a file with a backslash": (lambda m: m["files"].update({"a\\b.json": [25, None]}), "it has a backslash"),
    "a record outside": (
        lambda m: m["layers"]["0"]["records"][0].__setitem__(0, "/etc/x.pack"),
        "not the name of a fi",
    ),
    "a record in the trunk": (
        lambda m: m["layers"]["0"]["records"][0].__setitem__(0, "trunk.safetensors"),
        "not a file of records",
    ),
    "a record off the pages": (lambda m: m["layers"]["0"]["records"][0].__setitem__(1, 64), "off the pages"),
    "a record past the end": (lambda m: m["layers"]["0"]["records"][0].__setitem__(1, 1 << 40), "past the end"),
    "a record before the start": (lambda m: m["layers"]["0"]["records"][0].__setitem__(1, -4096), "greater than or"),
    "overlapping records": (lambda m: m["layers"]["0"]["records"][1].__setitem__(1, 4096), "two records overlap"),
    "an unknown layout": (lambda m: m["layers"]["1"].update(layout=7), "layer 1 has layout 7 of 1"),
    "an unknown dtype": (lambda m: m["layouts"][0][0].__setitem__(1, "I128"), "is not a dtype"),
    "a shape of nothing": (lambda m: m["layouts"][0][0].__setitem__(2, [0, 4]), "greater than or equal to 1"),
    "no experts": (lambda m: m["layers"]["0"].update(records=[]), "at least 1 item"),
    "no layers": (lambda m: m.update(layers={}), "at least 1 item"),
    "no trunk": (lambda m: m["files"].pop("trunk.safetensors"), "names no trunk.safetensors"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(FORGERIES))
def test_a_manifest_that_contradicts_itself_is_refused(out: Path, name: str) -> None:
    change, complaint = FORGERIES[name]
    forge(out, change)
    with pytest.raises(CheckpointError, match=complaint):
        open_pack(out)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def alter(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))


@pytest.mark.parametrize(
    ("name", "damage", "complaint"),
    [
        (FIRST, Path.unlink, "is missing"),
        (FIRST, cut, "bytes long, not"),
        ("trunk.safetensors", cut, "bytes long, not"),
        ("trunk.safetensors", alter, "its checksum differs"),
        ("config.json", alter, "its checksum differs"),
    ],
)
def test_a_missing_short_or_altered_file_is_named(
    out: Path, name: str, damage: Callable[[Path], None], complaint: str
) -> None:
    damage(data_folder(out) / name)
    with pytest.raises(CheckpointError, match=rf"{name} .*{complaint}.*; copy it again, or pack the model again"):
        open_pack(out)


@pytest.mark.parametrize("name", ["chat_template.jinja", "special_tokens_map.json", "additional_chat_templates"])
def test_what_was_put_beside_the_packed_files_is_refused(out: Path, name: str) -> None:
    """Transformers would read it."""
    path = data_folder(out) / name
    path.write_text("{}") if "." in name else path.mkdir()
    with pytest.raises(CheckpointError, match=f"{name} is not a part of the pack; remove it, or add it to the check"):
        open_pack(out)


def test_hidden_files_beside_the_packed_ones_are_ignored(out: Path) -> None:
    (data_folder(out) / ".DS_Store").touch()
    open_pack(out)


def test_a_link_that_leads_out_of_the_folder_is_refused(out: Path, tmp_path: Path) -> None:
    path = data_folder(out) / FIRST
    path.rename(tmp_path / FIRST)
    path.symlink_to(tmp_path / FIRST)
    with pytest.raises(CheckpointError, match="is outside of"):
        open_pack(out)


def test_the_manifest_of_another_model_is_refused(out: Path, tmp_path: Path) -> None:
    pack(make_source(tmp_path / "other", shift=0.5), tmp_path / "other_out")
    shutil.copy(tmp_path / "other_out" / "manifest.json", out / "manifest.json")
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        open_pack(out)


def test_a_record_in_the_place_of_another_layers_is_refused_when_it_is_read(out: Path) -> None:
    forge(out, swap)
    with pytest.raises(ExpertLoadError, match="cannot read expert 2 of layer 0: the checksum"):
        served(open_pack(out))


def test_a_flipped_bit_of_a_record_is_found_out_when_it_is_read(out: Path) -> None:
    path = data_folder(out) / FIRST
    raw = bytearray(path.read_bytes())
    raw[LAYOUT.slot_bytes + 17] ^= 4
    path.write_bytes(raw)
    with pytest.raises(ExpertLoadError, match="cannot read expert 1 of layer 0: the checksum"):
        served(open_pack(out))
