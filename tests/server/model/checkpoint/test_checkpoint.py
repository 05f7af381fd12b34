"""Checkpoints behind a web server: what loads, packs and inspects a model knows sources alone, and no paths."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from expert_store import ExpertKey, ExpertStore, least_bytes, open_pack, write_pack
from expert_store.errors import SourceGoneError
from server.model.checkpoint.checkpoint import Checkpoint
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.model_building import build_model
from server.model.opening.gguf_checkpoint import GgufCheckpoint
from server.model.opening.open_checkpoint import open_checkpoint, open_folder
from server.model.opening.packing import pack_source
from server.model.text.tokenizer import Tokenizer
from server.model.trunk_loader import load_trunk
from tests.byte_tokenizer import save_byte_tokenizer
from tests.checkpoints import make_checkpoint
from tests.packed_models import pack_model
from tests.remote_folder import RemoteFolder, remote_folder

GGUF = Path(__file__).parents[3] / "gguf" / "files" / "qwen3moe.gguf"


def make_folder(folder: Path) -> Path:
    make_checkpoint("qwen3_moe", folder)
    save_byte_tokenizer(folder)
    return folder


def make_pack(folder: Path) -> Path:
    return pack_model(make_folder(folder.with_name("unpacked")), folder, "int8")


def copy_gguf(folder: Path) -> Path:
    folder.mkdir()
    shutil.copy(GGUF, folder)
    return folder


def open_gguf(place: RemoteFolder) -> Checkpoint:
    return GgufCheckpoint(place, GGUF.name)


KINDS: dict[str, tuple[Callable[[Path], Path], str, Callable[[RemoteFolder], Checkpoint]]] = {
    "safetensors": (make_folder, "", open_folder),
    "pack": (make_pack, "", open_folder),
    "gguf": (copy_gguf, GGUF.name, open_gguf),
}


@contextmanager
def opened_remotely(folder: Path, tmp_path: Path) -> Iterator[Checkpoint]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with remote_folder(folder, scratch) as place:
        yield FolderCheckpoint(place)


def experts_of(catalog: Any, key: ExpertKey) -> dict[str, torch.Tensor]:
    store = ExpertStore(catalog, least_bytes(catalog, 1))
    try:
        with store.lease({key: 1}) as lease:
            return {name: tensor.clone() for _, weights in lease for name, tensor in weights.items()}
    finally:
        store.close()


def check_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_remote_model_is_that_of_the_disk(kind: str, tmp_path: Path) -> None:
    """Trunk, experts, defaults and tokenizer."""
    make, file, open_remote = KINDS[kind]
    folder, scratch = make(tmp_path / "tiny"), tmp_path / "scratch"
    scratch.mkdir()
    local = open_checkpoint(folder / file)
    of_disk, words = load_trunk(local, torch.float32), Tokenizer(local).encode("Once upon a time")
    key = ExpertKey(min(of_disk.catalog.layers), 1)
    expected, defaults = experts_of(of_disk.catalog, key), local.generation_values()
    with remote_folder(folder, scratch) as place:
        remote = open_remote(place)
        trunk = load_trunk(remote, torch.float32)
        check_equal(trunk.model.state_dict(), of_disk.model.state_dict())
        check_equal(experts_of(trunk.catalog, key), expected)
        assert all(source.name.startswith("http://127.0.0.1:") for source in trunk.catalog.sources)
        assert Tokenizer(remote).encode("Once upon a time") == words
        assert remote.generation_values() == defaults


def test_a_remote_model_is_packed_as_that_of_the_disk(tmp_path: Path) -> None:
    folder, out = make_folder(tmp_path / "tiny"), tmp_path / "out"
    expected = open_pack(pack_model(folder, tmp_path / "expected", "int8")).manifest
    with opened_remotely(folder, tmp_path) as checkpoint:
        model = build_model(checkpoint.read_config(), torch.bfloat16)
        write_pack(pack_source(model, checkpoint, expected.model, "int8"), out, 1, lambda _: None)
    assert open_pack(out).manifest == expected


def test_a_source_that_is_gone_fails_by_name(tmp_path: Path) -> None:
    with opened_remotely(make_folder(tmp_path / "tiny"), tmp_path) as checkpoint:
        config, found = checkpoint.read_config(), checkpoint.index()
        assert config.model_type == "qwen3_moe"
        assert found
        (tmp_path / "scratch" / "served" / "model.safetensors").unlink()
        with pytest.raises(SourceGoneError, match=r"http://.*/model\.safetensors: the server answers 404"):
            load_trunk(checkpoint, torch.float32)
