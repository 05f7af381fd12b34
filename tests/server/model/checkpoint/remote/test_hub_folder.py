"""Files of a repository on the hub as sources: links, checksums and commits."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from expert_store import FileSource
from expert_store.errors import CheckpointError, SourceChangedError, SourceUnreadableError
from expert_store.sources.base import Piece
from server.model.checkpoint.download import Listing, list_upload
from server.model.checkpoint.remote import retries
from server.model.checkpoint.remote.hub_cache import keep_file
from server.model.checkpoint.remote.hub_folder import HubFolder
from server.model.checkpoint.remote.web_client import WebClient
from server.model.checkpoint.remote.web_source import OpenWebSource
from tests.e2e.hub import COMMIT, Hub, serving_hub, use_hub

MODEL, NAME = "somebody/some-model", "model.safetensors"
CONTENT = np.random.default_rng(0).integers(0, 256, 100_000, np.uint8)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / NAME).write_bytes(CONTENT.tobytes())
    (folder / "config.json").write_text("{}")
    with serving_hub(MODEL, folder) as hub:
        use_hub(monkeypatch, hub.url, tmp_path / "hub")
        monkeypatch.setattr(retries, "FIRST_WAIT_SECONDS", 0.001)
        yield hub


@pytest.fixture
def listing(hub: Hub) -> Listing:
    del hub
    found = list_upload(MODEL, None)
    assert found is not None
    return found


@pytest.fixture
def opened(listing: Listing) -> Iterator[OpenWebSource]:
    client = WebClient()
    source = HubFolder(listing, client).source(NAME).open()
    assert isinstance(source, OpenWebSource)
    yield source
    client.close()


def read(opened: OpenWebSource, begin: int = 0, end: int = 100) -> None:
    piece = Piece(begin, np.empty(end - begin, np.uint8))
    opened.read([piece])
    assert np.array_equal(piece.target, CONTENT[begin:end])


def test_nothing_is_asked_for_before_the_first_read_and_one_link_for_all(hub: Hub, opened: OpenWebSource) -> None:
    assert not hub.resolved
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: read(opened, number, 1000), range(8)))
    assert hub.resolved == [NAME]


def test_the_first_read_looks_for_the_file_by_its_own_range(hub: Hub, opened: OpenWebSource) -> None:
    read(opened, 10, 1000)
    assert hub.sent[NAME] == 990


def test_a_file_without_weights_comes_into_the_hubs_cache(listing: Listing) -> None:
    source = HubFolder(listing).source("config.json")
    assert isinstance(source, FileSource)
    assert source.path == listing.cached("config.json")


def test_an_expired_link_is_asked_for_once_for_all_who_wait(hub: Hub, opened: OpenWebSource) -> None:
    read(opened)
    hub.valid_link = 1
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: read(opened, number, 1000), range(8)))
    assert hub.resolved == [NAME] * 2


def test_a_link_that_is_refused_again_is_an_error_with_the_answer(hub: Hub, opened: OpenWebSource) -> None:
    read(opened)
    hub.valid_link, hub.refuses_links = 1, True
    with pytest.raises(SourceUnreadableError, match="the server answers 403"):
        read(opened)
    assert hub.resolved == [NAME] * 2
    hub.refuses_links = False
    read(opened)


def test_another_commit_is_refused(hub: Hub, opened: OpenWebSource) -> None:
    hub.commit = "1" * 40
    with pytest.raises(SourceChangedError, match="was changed on the server"):
        read(opened)


def test_a_file_with_another_checksum_is_refused(hub: Hub, opened: OpenWebSource) -> None:
    (hub.folder / NAME).write_bytes(CONTENT[::-1].tobytes())
    with pytest.raises(SourceChangedError, match="was changed on the server"):
        read(opened)


def test_a_complete_file_becomes_one_of_the_hubs_cache(listing: Listing, tmp_path: Path) -> None:
    complete = tmp_path / "complete"
    complete.write_bytes(CONTENT.tobytes())
    keep_file(listing, NAME, complete)
    found = listing.cached(NAME)
    assert found is not None
    assert found.read_bytes() == CONTENT.tobytes()
    assert (tmp_path / "hub" / "models--somebody--some-model" / "refs" / "main").read_text() == COMMIT
    keep_file(listing, NAME, complete)  # another server completed it, too


def test_a_file_in_the_hubs_cache_is_open_to_all_whom_its_folder_is_open_to(listing: Listing, tmp_path: Path) -> None:
    complete, blobs = tmp_path / "complete", tmp_path / "hub" / "models--somebody--some-model" / "blobs"
    complete.write_bytes(CONTENT.tobytes())
    complete.chmod(0o600)
    blobs.mkdir(parents=True)
    blobs.chmod(0o750)
    keep_file(listing, NAME, complete)
    (blob,) = blobs.iterdir()
    assert blob.stat().st_mode & 0o777 == 0o640


def test_damaged_bytes_do_not_come_into_the_hubs_cache(listing: Listing, tmp_path: Path) -> None:
    complete = tmp_path / "complete"
    complete.write_bytes(CONTENT[::-1].tobytes())
    with pytest.raises(CheckpointError, match=r"the bytes of model\.safetensors are not those that the hub has"):
        keep_file(listing, NAME, complete)
    assert listing.cached(NAME) is None
