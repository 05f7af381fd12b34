"""A server, a disk cache or a folder that names files outside of a model writes and reads nothing there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from expert_store import CheckpointError, FileName, LocalFolder, find_shards
from expert_store.disk_cache.cached_source import CachedFolder
from expert_store.disk_cache.disk_cache import DiskCache
from expert_store.errors import SourceTimeoutError
from expert_store.io.safetensors_index import INDEX_NAME
from expert_store.packed.manifest import named_folder
from server.model.checkpoint.gguf.gguf_file import GgufFile
from server.model.checkpoint.local_files import names_of_splits
from server.model.checkpoint.locate import find_local
from server.model.checkpoint.remote import small_copies
from server.model.checkpoint.remote.place import web_place
from server.model.checkpoint.remote.web_client import WebClient
from server.model.checkpoint.remote.web_folder import WebFolder
from server.model.opening.open_checkpoint import open_checkpoint
from server.model.opening.variant_files import read_variant
from tests.web_server import FileServer, file_server

HOSTILE = [
    "../../../x.json",
    "/abs/x.txt",
    "a/../../x.json",
    "a\\..\\x.json",
    "C:/x.json",
    "x\n.json",
    "a//x.json",
    "",
    5,
    [],
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FileServer]:
    """A server that has a file for what is left of a hostile name in an address."""
    folder = tmp_path / "served" / "b" / "c"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "abs").mkdir()
    for name in ("x.json", "abs/x.txt"):
        (folder / name).write_text("of the server")
    with file_server(folder) as server:
        yield server


@pytest.fixture
def remote(server: FileServer) -> Iterator[WebFolder]:
    client = WebClient()
    yield WebFolder(server.url, client)
    client.close()


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the client's own files."""
    folder = tmp_path / "client" / "a" / "b" / "c"
    folder.mkdir(parents=True)
    monkeypatch.setattr(small_copies.tempfile, "mkdtemp", lambda **_: str(folder))
    return folder


def index_of(name: object) -> str:
    return json.dumps({"weight_map": {"tensor": "model.safetensors", "other": name}})


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", HOSTILE)
def test_an_index_of_a_web_server_writes_nothing_outside_of_the_copies(
    server: FileServer, remote: WebFolder, copies: Path, tmp_path: Path, name: object
) -> None:
    (server.folder / INDEX_NAME).write_text(index_of(name))
    with pytest.raises(
        CheckpointError, match=r"index\.json names a shard which is no \.safetensors file of its folder"
    ):
        remote.local_copy(["*.json", "*.txt"])
    assert files_below(tmp_path / "client") == files_below(copies) == []


def test_names_that_a_disk_cache_remembers_are_checked_too(
    remote: WebFolder, copies: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = DiskCache(tmp_path / "cache")
    cache.remembered.keep_names(remote.name, ["config.json", "../../../x.json"])
    CachedFolder(remote, cache).local_copy(["*.json"])
    assert files_below(tmp_path / "client") == [f"a/b/c/{remote.short_name}/config.json"]
    assert "'../../../x.json' is not the name of a file inside a model" in caplog.text
    assert cache.remembered.names(remote.name) == ["config.json"]


def test_names_with_folders_that_a_disk_cache_remembers_are_not_copied(
    remote: WebFolder, copies: Path, tmp_path: Path
) -> None:
    cache = DiskCache(tmp_path / "cache")
    cache.remembered.keep_names(remote.name, [FileName("config.json"), FileName("a/b.json")])
    cache.go_offline(SourceTimeoutError("the server", "is away"))
    CachedFolder(remote, cache).local_copy(["*.json"])
    assert files_below(copies) == [f"{remote.short_name}/config.json"]


def test_a_query_or_a_fragment_in_a_name_is_a_part_of_the_path(remote: WebFolder) -> None:
    assert remote.source(FileName("a?b#c%2e.json")).url == f"{remote.url}/a%3Fb%23c%252e.json"


@pytest.mark.parametrize("name", HOSTILE)
def test_the_index_of_a_local_folder_leads_nowhere_else(tmp_path: Path, name: object) -> None:
    (tmp_path / INDEX_NAME).write_text(index_of(name))
    with pytest.raises(
        CheckpointError, match=r"which is no \.safetensors file of its folder: .*; download the checkpoi"
    ):
        find_shards(tmp_path)


@pytest.mark.parametrize("name", ["\\", "x\n.json", "\udc80.json"])
def test_files_of_a_folder_with_names_that_no_model_has_are_not_seen(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    (tmp_path / "config.json").touch()
    assert LocalFolder(tmp_path).names() == ["config.json"]


@pytest.mark.parametrize("number", [0, 3, 99999])
def test_a_split_with_a_number_beyond_the_files_is_refused(tmp_path: Path, number: int) -> None:
    name = f"m-{number:05d}-of-00002.gguf"
    with pytest.raises(CheckpointError, match=f"^{name} is file {number} of 2 by its name; give it the name"):
        GgufFile.open(tmp_path, FileName(name))


def test_a_split_of_no_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m-00001-of-00000.gguf").touch()
    found = find_local(str(tmp_path / "m-00001-of-00000.gguf"))
    assert found is not None
    with pytest.raises(CheckpointError, match=r"is file 1 of 0 by its name"):
        open_checkpoint(found[0]).read_config()


def test_splits_stay_in_the_folder_of_the_first() -> None:
    assert names_of_splits(FileName("Q4/m-00002-of-00002.gguf")) == [
        "Q4/m-00001-of-00002.gguf",
        "Q4/m-00002-of-00002.gguf",
    ]


@pytest.mark.parametrize("name", ["..%2f..%2fm.gguf", "a%5cm.gguf", "%0am.gguf"])
def test_an_address_with_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match="is not the name of a file inside a model"):
        web_place(f"http://127.0.0.1:1/{name}")


def test_a_damaged_manifest_names_no_file_outside_of_its_folder_to_remove(tmp_path: Path) -> None:
    data = "0" * 16
    files = {name: [0, None] for name in ("config.json", "..", "../x", "a/b", "/x")}
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "greenroom-pack", "data": data, "files": files}))
    assert named_folder(tmp_path) == {data: {"config.json"}}


def test_a_variant_with_such_an_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    (tmp_path / INDEX_NAME).write_text(index_of("../../base/model.safetensors"))
    base: Any = None
    with pytest.raises(CheckpointError, match=r"'\.\./\.\./base/model\.safetensors' is not the name of a file inside"):
        read_variant(tmp_path, "variant", "1", base)
