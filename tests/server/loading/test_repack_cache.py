"""The cache of experts as one record each: which models it is for, and what it writes first."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from expert_store import CheckpointError, ExpertCatalog, ExpertKey, ExpertStore, LocalFolder, catalog
from expert_store.disk_cache.expert_records import HUGE_BYTES, OpenExpertRecords, RecordSource
from expert_store.disk_cache.extent_log import EXTENT_BYTES
from expert_store.disk_cache.fill import NUM_THREADS, FillProgress
from expert_store.disk_cache.memory import cache_memory_bytes
from expert_store.store import NUM_READERS
from server.loading.load import load_server
from server.loading.load_model import load_model
from server.loading.remote_models import with_cache
from server.loading.repack_cache import _wanted_first, describe, make_repack_fill, use_records
from server.model.checkpoint.remote.place import RemotePlace
from server.settings import ServeSettings, SettingsError
from tests.expert_store.files import make_catalog
from tests.expert_store.lease_rows import one_row_each
from tests.expert_store.records import make_records
from tests.gguf.models import FILES

SECONDS = 30.0
GGUF = str(FILES / "qwen3moe.gguf")


@pytest.fixture(autouse=True)
def parts_that_lie_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "MAX_GAP_BYTES", -1)


def trunk_of(catalog: ExpertCatalog) -> Any:
    return SimpleNamespace(catalog=catalog)


def experts_of(catalog: ExpertCatalog) -> dict[ExpertKey, list[torch.Tensor]]:
    """Return the tensors of all experts, as a store reads them."""
    store, found = ExpertStore(catalog, catalog.total_bytes), {}
    for layer, entry in catalog.layers.items():
        with store.lease(one_row_each(layer, range(len(entry.experts)))) as lease:
            for key, weights in lease:
                found[key] = [tensor.clone() for tensor in weights.values()]
    store.close()
    return found


def test_a_gguf_file_is_served_with_the_same_bits_from_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ServeSettings(repack_cache=tmp_path, host_expert_memory="100%")
    server = load_server(GGUF, settings)
    assert server.repack is not None
    while server.repack.progress().state != "complete":
        assert not threading.Event().wait(0.01)
    lines = server.metrics.render().decode().splitlines()
    server.close()
    held, total = (
        next(line.split()[1] for line in lines if line.startswith(f"greenroom_repack_cache{name}_bytes "))
        for name in ("", "_total")
    )
    assert held == total
    trunk = load_model(GGUF, ServeSettings()).trunk
    before = experts_of(trunk.catalog)
    use_records(trunk, "tiny", settings)
    monkeypatch.delattr(OpenExpertRecords, "read")
    after = experts_of(trunk.catalog)
    assert all(torch.equal(one, other) for key in before for one, other in zip(before[key], after[key], strict=True))


def test_experts_that_are_not_in_memory_come_first_and_then_those_of_most_tokens(tmp_path: Path) -> None:
    trunk = trunk_of(make_catalog(tmp_path, 1, 4))
    use_records(trunk, "tiny", ServeSettings(repack_cache=tmp_path / "cache"))
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    with store.lease({ExpertKey(0, 0): 9, ExpertKey(0, 1): 5, ExpertKey(0, 2): 7}) as lease:
        list(lease)
    store.evict([ExpertKey(0, 1), ExpertKey(0, 2)])
    (records,) = store.catalog.sources
    assert isinstance(records, RecordSource)
    by_begin = {begin: key.expert for key, (begin, _) in records.source.layout.spans.items()}
    assert [by_begin[begin] for _, begin, _ in _wanted_first(store, records)] == [2, 1, 3, 0]
    store.close()


def test_the_memory_plan_counts_records_on_their_way(tmp_path: Path) -> None:
    trunk = trunk_of(make_catalog(tmp_path, 1, 4))
    assert cache_memory_bytes(trunk.catalog) == 0
    use_records(trunk, "tiny", ServeSettings(repack_cache=tmp_path / "cache"))
    assert cache_memory_bytes(trunk.catalog) == NUM_THREADS * EXTENT_BYTES + NUM_READERS * HUGE_BYTES


@pytest.mark.parametrize("place", ["model", "link"])
def test_the_folder_of_the_model_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "model")
    trunk = trunk_of(make_catalog(tmp_path / "model"))
    with pytest.raises(SettingsError, match="is the folder of the model; give a folder of its own"):
        use_records(trunk, "tiny", ServeSettings(repack_cache=tmp_path / place))


def test_a_folder_that_can_not_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="can't be a cache: Not a directory"):
        use_records(trunk_of(make_catalog(tmp_path)), "tiny", ServeSettings(repack_cache=tmp_path / "file" / "cache"))


def test_a_folder_that_can_not_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(SettingsError, match="nothing can be written there"):
        use_records(trunk_of(make_catalog(tmp_path)), "tiny", ServeSettings(repack_cache=tmp_path / "cache"))


def test_a_model_elsewhere_is_refused_with_the_flag_for_it(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is elsewhere; give --disk-cache instead"):
        with_cache(RemotePlace(LocalFolder(tmp_path)), ServeSettings(repack_cache=tmp_path / "cache"))


def test_a_pack_needs_no_records(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trunk = trunk_of(make_records(tmp_path))
    before = trunk.catalog
    with caplog.at_level(logging.INFO):
        use_records(trunk, "tiny", ServeSettings(repack_cache=tmp_path / "cache"))
    assert trunk.catalog is before
    assert "each expert of tiny is one read already" in caplog.text


def test_nothing_is_written_without_a_cache(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path)
    store = ExpertStore(catalog, catalog.total_bytes)
    assert make_repack_fill(store) is None
    store.close()


def test_progress_that_waits_tells_the_reason() -> None:
    text = describe(FillProgress(1 << 30, 3 << 30, None, "waiting", "the disk has no room for more"))
    assert text == "1.0 GiB of 3.0 GiB; the rest waits: the disk has no room for more"
