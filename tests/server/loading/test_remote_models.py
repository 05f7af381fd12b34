"""The room that a disk has for a model elsewhere, and what is said if it has none."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from expert_store import FileName, LocalFolder
from expert_store.disk_cache.cached_source import CachedFolder
from expert_store.disk_cache.disk_cache import DiskCache
from expert_store.disk_cache.fill import FillProgress
from expert_store.sources.base import SourceIdentity
from server.byte_sizes import GIB
from server.loading.remote_models import describe, make_fill, with_cache
from server.model.checkpoint.hub_answers import Commit
from server.model.checkpoint.hub_listing import Listing, partial_folder
from server.model.checkpoint.remote.hub_folder import HubFolder
from server.model.checkpoint.remote.place import RemotePlace
from server.settings import ServeSettings


@pytest.mark.parametrize(("disk_gib", "kept_gib"), [(20, 1), (2000, 4)], ids=["small", "large"])
def test_a_cache_leaves_the_smaller_of_a_twentieth_of_its_disk_and_4_gib_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk_gib: int, kept_gib: int
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=disk_gib * GIB, free=10 * GIB))
    place = with_cache(RemotePlace(LocalFolder(tmp_path)), ServeSettings(disk_cache=tmp_path / "cache"))
    assert isinstance(place, RemotePlace)
    assert isinstance(place.folder, CachedFolder)
    assert place.folder.cache.max_bytes == (10 - kept_gib) * GIB


def test_a_download_that_waits_is_described_by_its_reason_and_no_time() -> None:
    spans = SimpleNamespace(held_bytes=1 * GIB, total_bytes=4 * GIB)
    text = describe(FillProgress(2 * GIB, 6 * GIB, None, "waiting", "the disk has no room for more"), spans)
    assert text.endswith("first answer possible, the rest waits: the disk has no room for more")


def test_a_model_of_the_hub_whose_folder_for_parts_can_not_be_used_is_served_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    place = RemotePlace(HubFolder(Listing("a/model", Commit("0" * 40), [], {})))
    folder = partial_folder("a/model")
    folder.mkdir(parents=True)
    (folder / "other").touch()
    folder.chmod(0o777)
    assert with_cache(place, ServeSettings()) is place
    assert "partial can't be a cache: other users can write to it; give a folder of its own" in caplog.text


def test_what_the_disk_has_of_a_model_needs_no_more_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    name = FileName("model.safetensors")
    folder = HubFolder(Listing("a/model", Commit("0" * 40), [name], {name: 3 << 20}))
    source, cache = folder.remote_file(name), DiskCache(partial_folder("a/model"))
    identity = SourceIdentity("web", (source.name, '"1-2"'), 3 << 20)
    cache.remembered.keep_identity(source.name, identity)
    file = cache.file(identity)
    assert file is not None
    file.store(0, np.ones(2 << 20, np.uint8))
    place = RemotePlace(folder)
    for free_mib, is_cached in ((1, True), (0.5, False)):
        monkeypatch.setattr("server.loading.remote_models.room_on_disk", lambda _, free=free_mib: free * 2**20)
        assert (with_cache(place, ServeSettings()) is not place) == is_cached


def test_a_model_of_the_hub_without_room_on_the_disk_is_served_from_there_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=20 * GIB, free=3 * GIB))
    name = FileName("model.safetensors")
    folder = HubFolder(Listing("a/model", Commit("0" * 40), [name], {name: 5 * GIB // 2}))
    place = RemotePlace(folder)
    assert with_cache(place, ServeSettings()) is place
    store = SimpleNamespace(catalog=SimpleNamespace(sources=[folder.source(name)]))
    assert make_fill(store, ServeSettings(), lambda: None) is None
    assert "its 2.5 GiB do not fit on the disk with 2.0 GiB free; --disk-cache keeps a part" in caplog.text
