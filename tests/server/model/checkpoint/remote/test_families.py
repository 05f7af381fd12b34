"""Models on the hub and on web servers have the bits of the same files on a disk, whatever a cache holds."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from expert_store import ExpertKey
from expert_store.disk_cache.cached_source import CachedFolder
from expert_store.disk_cache.disk_cache import DiskCache
from expert_store.errors import SourceUnreadableError
from expert_store.io.metadata import read_metadata
from server.model.checkpoint.checkpoint import Checkpoint
from server.model.checkpoint.locate import find_served
from server.model.checkpoint.remote import retries
from server.model.checkpoint.remote.hub_folder import HubFolder
from server.model.checkpoint.remote.place import RemotePlace, web_place
from server.model.checkpoint.remote.web_folder import WebFolder
from server.model.opening.open_checkpoint import open_checkpoint
from server.model.trunk_loader import load_trunk
from tests.checkpoints import make_checkpoint
from tests.e2e.hub import serving_hub, use_hub
from tests.gguf.models import FILES
from tests.server.model.checkpoint.test_checkpoint import check_equal, experts_of, make_pack
from tests.web_server import file_server

GGUF, PACK = "qwen3moe.gguf", "pack"
REPOSITORY = "somebody/tiny"


Put = Callable[[Path, str, Path], AbstractContextManager[RemotePlace]]


@contextmanager
def on_a_web_server(folder: Path, file: str, _: Path) -> Iterator[RemotePlace]:
    with file_server(folder.parent) as server:
        yield from closed(web_place(f"{server.url}/{folder.name}/{file}"))


@contextmanager
def on_the_hub(folder: Path, file: str, cache: Path) -> Iterator[RemotePlace]:
    with serving_hub(REPOSITORY, folder) as hub, pytest.MonkeyPatch.context() as patch:
        use_hub(patch, hub.url, cache)
        place, _ = find_served(f"{REPOSITORY}:qwen3moe" if file else REPOSITORY, None)
        assert isinstance(place, RemotePlace)
        yield from closed(place)


def closed(place: RemotePlace) -> Iterator[RemotePlace]:
    """Yield a place, and close the connections to it."""
    assert isinstance(place.folder, HubFolder | WebFolder)
    yield place
    place.folder.client.close()


def bits(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return the tensors of trunk and experts."""
    trunk = load_trunk(checkpoint, torch.float32)
    found = dict(trunk.model.state_dict())
    for layer, entry in trunk.catalog.layers.items():
        for expert in (0, len(entry.experts) - 1):
            key = ExpertKey(layer, expert)
            found |= {f"{key}.{name}": tensor for name, tensor in experts_of(trunk.catalog, key).items()}
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "put"),
    [
        *((family, on_a_web_server) for family in ("deepseek_v3", "gpt_oss", "gemma4_text", GGUF, PACK)),
        *((family, on_the_hub) for family in ("qwen3_moe", GGUF, PACK)),
    ],
)
def test_the_bits_are_those_of_the_disk(family: str, put: Put, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    if family == GGUF:
        folder.mkdir()
        shutil.copy(FILES / GGUF, folder)
    elif family == PACK:
        make_pack(folder)
    else:
        make_checkpoint(family, folder)
    file = GGUF if family == GGUF else ""
    expected = bits(open_checkpoint(folder / file))
    with put(folder, file, tmp_path / "hub") as place:
        cached = replace(place, folder=CachedFolder(place.folder, DiskCache(tmp_path / "cache")))
        for where in (place, cached, cached):  # without a cache, with an empty and with a filled one
            check_equal(bits(open_checkpoint(where)), expected)


def test_a_model_in_a_cache_is_opened_while_its_server_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT_SECONDS", 0.001)
    make_checkpoint("qwen3_moe", tmp_path / "tiny")
    with file_server(tmp_path) as server:
        address = f"{server.url}/tiny"
        seen = bits(open_checkpoint(cached_place(address, tmp_path / "cache")))
    away = cached_place(address, tmp_path / "cache")
    check_equal(bits(open_checkpoint(away)), seen)
    with pytest.raises(SourceUnreadableError, match="the connection failed"):
        read_metadata(away.folder.source("vocab.json"))


def cached_place(address: str, cache: Path) -> RemotePlace:
    place = web_place(address)
    return replace(place, folder=CachedFolder(place.folder, DiskCache(cache)))
