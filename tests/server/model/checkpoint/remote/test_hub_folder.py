"""Files of a repository on the hub as sources: links, checksums and commits."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from expert_store import FileName, FileSource
from expert_store.disk_cache.cached_source import CachedSource, OpenCachedSource
from expert_store.disk_cache.disk_cache import DiskCache
from expert_store.disk_cache.fill import Fill
from expert_store.errors import CheckpointError, SourceChangedError, SourceUnreadableError
from expert_store.sources.base import Piece
from server.loading.remote_models import make_fill
from server.model.checkpoint.hub_listing import Listing, list_upload
from server.model.checkpoint.remote import retries
from server.model.checkpoint.remote.hub_cache import keep_file
from server.model.checkpoint.remote.hub_folder import HubFile, HubFolder
from server.model.checkpoint.remote.web_client import WebClient
from server.model.checkpoint.remote.web_source import OpenWebSource
from server.settings import ServeSettings, SettingsError
from tests.e2e.hub import COMMIT, Hub, serving_hub, use_hub

MODEL, NAME = "somebody/some-model", FileName("model.safetensors")
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
    keep_file(listing, NAME, complete, listing.checksums[NAME])
    found = listing.cached(NAME)
    assert found is not None
    assert found.read_bytes() == CONTENT.tobytes()
    assert (tmp_path / "hub" / "models--somebody--some-model" / "refs" / "main").read_text() == COMMIT
    keep_file(listing, NAME, complete, listing.checksums[NAME])  # another server completed it, too


MODIFIED = {"Last-Modified": "Wed, 02 Dec 2026 08:00:00 GMT"}


@pytest.fixture
def without_checksums(hub: Hub) -> Iterator[HubFolder]:
    """The folder of a mirror that tells no SHA-256."""
    hub.has_checksums = False
    listing = list_upload(MODEL, None)
    assert listing is not None
    client = WebClient()
    yield HubFolder(listing, client)
    client.close()


def filled(source: CachedSource) -> OpenCachedSource:
    """Open a source, and read all of it into its cache."""
    source.open()
    is_complete = threading.Event()
    fill = Fill([source], on_complete=lambda _: is_complete.set())
    fill.start()
    assert is_complete.wait(30)
    fill.stop()
    return source.opened


@pytest.mark.parametrize(
    ("headers", "version"),
    [
        ({"ETag": '"65f2a1b3-1c9f0"'}, '"65f2a1b3-1c9f0"'),
        ({"X-Linked-Etag": f'W/"{"a" * 40}"', "ETag": '"1-2"'}, '"1-2"'),  # told by the server that the link leads to
        (MODIFIED, MODIFIED["Last-Modified"]),
        ({}, ""),
    ],
)
def test_what_a_mirror_without_checksums_tells_is_the_version(
    hub: Hub, without_checksums: HubFolder, headers: dict[str, str], version: str
) -> None:
    hub.version_headers[".safetensors"] = headers
    opened = without_checksums.source(NAME).open()
    assert opened.identity.version[1] == version
    assert opened.identity.nbytes == len(CONTENT)


@pytest.mark.parametrize("headers", [{"ETag": '"65f2a1b3-1c9f0"'}, MODIFIED], ids=["ETag", "Last-Modified"])
def test_a_file_without_a_checksum_is_read_once_and_served_while_its_mirror_is_away(
    hub: Hub, without_checksums: HubFolder, tmp_path: Path, headers: dict[str, str]
) -> None:
    hub.version_headers[".safetensors"] = headers
    filled(CachedSource(without_checksums.source(NAME), DiskCache(tmp_path / "cache")))
    hub.is_away = True
    again = CachedSource(without_checksums.source(NAME), DiskCache(tmp_path / "cache")).open()
    piece = Piece(0, np.empty(len(CONTENT), np.uint8))
    again.read([piece])
    assert np.array_equal(piece.target, CONTENT)


def test_a_complete_file_with_an_etag_becomes_one_of_the_hubs_cache(
    hub: Hub, without_checksums: HubFolder, tmp_path: Path
) -> None:
    hub.version_headers[".safetensors"] = {"ETag": '"65f2a1b3-1c9f0"'}
    source = without_checksums.source(NAME)
    opened = filled(CachedSource(source, DiskCache(tmp_path / "cache")))
    assert isinstance(source, HubFile)
    assert opened.file is not None
    source.keep(opened.file.path, opened.identity)
    found = without_checksums.listing.cached(NAME)
    assert found is not None
    assert (found.resolve().name, found.read_bytes()) == ("65f2a1b3-1c9f0", CONTENT.tobytes())


@pytest.mark.parametrize("version", ["", "../../../x", MODIFIED["Last-Modified"], '"config.json"'])
def test_a_version_that_names_no_file_of_the_hubs_cache_leaves_the_file_where_it_is(
    listing: Listing, tmp_path: Path, version: str
) -> None:
    complete = tmp_path / "complete"
    complete.write_bytes(CONTENT.tobytes())
    with pytest.raises(CheckpointError, match=r"tells neither a checksum nor an ETag of model\.safetensors"):
        keep_file(listing, NAME, complete, version)
    assert complete.exists()
    assert listing.cached(NAME) is None


def test_a_changed_file_without_a_checksum_is_refused(hub: Hub, without_checksums: HubFolder) -> None:
    hub.version_headers[".safetensors"] = {"ETag": '"1-2"'}
    opened = without_checksums.source(NAME).open()
    assert isinstance(opened, OpenWebSource)
    read(opened)
    hub.version_headers[".safetensors"] = {"ETag": '"1-3"'}
    with pytest.raises(SourceChangedError, match="was changed on the server"):
        read(opened)


@pytest.mark.parametrize("wanted", ["auto", "on"])
def test_a_mirror_without_any_version_is_told_once_with_the_reason(
    hub: Hub, without_checksums: HubFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture, wanted: Any
) -> None:
    hub.version_headers[".safetensors"] = {}
    source = CachedSource(without_checksums.source(NAME), DiskCache(tmp_path / "cache"))
    source.open()
    store: Any = SimpleNamespace(catalog=SimpleNamespace(sources=[source], layers={}))
    settings = ServeSettings(complete_download=wanted)
    reason = rf"its server tells neither an ETag nor Last-Modified of {hub.url}\S*/{NAME}, so that another content"
    if wanted == "on":
        with pytest.raises(SettingsError, match=f"^--complete-download can't be: {reason}"):
            make_fill(store, settings, lambda: None)
        return
    assert make_fill(store, settings, lambda: None) is None
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert re.search(f"^the download is not kept on the disk, and each start reads it again: {reason}", warning)


def test_a_file_in_the_hubs_cache_is_open_to_all_whom_its_folder_is_open_to(listing: Listing, tmp_path: Path) -> None:
    complete, blobs = tmp_path / "complete", tmp_path / "hub" / "models--somebody--some-model" / "blobs"
    complete.write_bytes(CONTENT.tobytes())
    complete.chmod(0o600)
    blobs.mkdir(parents=True)
    blobs.chmod(0o750)
    keep_file(listing, NAME, complete, listing.checksums[NAME])
    (blob,) = blobs.iterdir()
    assert blob.stat().st_mode & 0o777 == 0o640


def test_damaged_bytes_do_not_come_into_the_hubs_cache(listing: Listing, tmp_path: Path) -> None:
    complete = tmp_path / "complete"
    complete.write_bytes(CONTENT[::-1].tobytes())
    with pytest.raises(CheckpointError, match=r"the bytes of model\.safetensors are not those that the hub has"):
        keep_file(listing, NAME, complete, listing.checksums[NAME])
    assert listing.cached(NAME) is None
