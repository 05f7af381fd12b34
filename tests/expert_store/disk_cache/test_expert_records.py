"""Experts whose parts lie apart in files are read from one record each, once a cache has it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch

from expert_store import ExpertCatalog, ExpertKey, ExpertLoadError, ExpertStore, catalog
from expert_store.disk_cache import fill as fill_module
from expert_store.disk_cache.cache_file import DATA
from expert_store.disk_cache.disk_cache import DiskCache
from expert_store.disk_cache.expert_records import OpenExpertRecords, RecordSource, with_records
from expert_store.disk_cache.fill import Fill
from expert_store.sources.base import PAGE_BYTES, Piece
from tests.expert_store.files import expected, make_catalog
from tests.expert_store.lease_rows import one_row_each

SECONDS = 30.0
LAYERS, EXPERTS = 2, 8


@pytest.fixture(autouse=True)
def parts_that_lie_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "MAX_GAP_BYTES", -1)


@pytest.fixture
def files(tmp_path: Path) -> ExpertCatalog:
    return make_catalog(tmp_path, LAYERS, EXPERTS)


def recorded(files: ExpertCatalog, cache: Path, max_bytes: int | None = None) -> tuple[ExpertCatalog, RecordSource]:
    found = with_records(files, "tiny", DiskCache(cache, max_bytes))
    assert found is not None
    return found


def fill(records: RecordSource) -> Fill:
    """Open the files, and write all records."""
    records.open()
    is_complete = threading.Event()
    spans = records.source.layout.spans.values()
    found = Fill([records], lambda: [(records, *span) for span in spans], lambda _: is_complete.set(), has_all=True)
    found.start()
    assert is_complete.wait(SECONDS)
    found.stop()
    return found


def read_all(catalog: ExpertCatalog) -> None:
    store = ExpertStore(catalog, catalog.total_bytes)
    try:
        for layer in range(LAYERS):
            with store.lease(one_row_each(layer, range(EXPERTS)), "decode") as lease:
                for key, tensors in lease:
                    assert torch.equal(tensors["gate_up"], expected(layer, key.expert))
    finally:
        store.close()


def test_experts_without_a_record_are_read_from_their_files(files: ExpertCatalog, tmp_path: Path) -> None:
    catalog, records = recorded(files, tmp_path / "cache")
    read_all(catalog)
    assert records.cache.hit_bytes == 0
    assert records.cache.remote_bytes == sum(catalog.read_bytes(key) for key in records.source.layout.spans)


def test_the_next_start_reads_each_expert_from_its_record(
    files: ExpertCatalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, records = recorded(files, tmp_path / "cache")
    fill(records)
    catalog, records = recorded(files, tmp_path / "cache")
    monkeypatch.delattr(OpenExpertRecords, "read")
    read_all(catalog)
    assert records.cache.hit_bytes == records.source.layout.nbytes


def test_a_miss_stores_nothing_as_somebody_waits_for_it(files: ExpertCatalog, tmp_path: Path) -> None:
    catalog, records = recorded(files, tmp_path / "cache")
    read_all(catalog)
    assert records.opened.file is not None
    assert records.opened.file.log.num_bytes == 0


def test_records_begin_on_pages_and_have_zeros_behind_their_parts(files: ExpertCatalog, tmp_path: Path) -> None:
    catalog, records = recorded(files, tmp_path / "cache")
    layout, key = records.source.layout, ExpertKey(1, 3)
    begin, end = layout.spans[key]
    target = torch.full((end - begin,), 7, dtype=torch.uint8)
    records.source.open().read([Piece(begin, target.numpy())])
    nbytes = catalog.read_bytes(key)
    assert (begin % PAGE_BYTES, end % PAGE_BYTES) == (0, 0)
    assert torch.equal(target[:nbytes].view(torch.float32), expected(1, 3).ravel())
    assert not target[nbytes:].any()


def test_a_replaced_checkpoint_is_not_served_from_old_records(files: ExpertCatalog, tmp_path: Path) -> None:
    _, records = recorded(files, tmp_path / "cache")
    fill(records)
    again, records = recorded(make_catalog(tmp_path, LAYERS, EXPERTS), tmp_path / "cache")
    read_all(again)
    assert records.cache.hit_bytes == 0


def test_a_file_that_is_written_to_fails_the_reads_of_its_records(files: ExpertCatalog, tmp_path: Path) -> None:
    catalog, records = recorded(files, tmp_path / "cache")
    fill(records)
    store = ExpertStore(catalog, catalog.total_bytes)
    os.utime(tmp_path / "layer0.safetensors", ns=(1, 1))
    with (
        pytest.raises(ExpertLoadError, match=r"layer0\.safetensors.*written to"),
        store.lease(one_row_each(1, [0]), "decode") as lease,
    ):
        list(lease)
    store.close()


def test_a_damaged_record_is_read_from_the_files_and_counted(files: ExpertCatalog, tmp_path: Path) -> None:
    _, records = recorded(files, tmp_path / "cache")
    fill(records)
    (data,) = (tmp_path / "cache").glob(f"*{DATA}")
    with data.open("r+b") as file:
        file.seek(records.source.layout.spans[ExpertKey(0, 2)][0])
        file.write(b"damage")
    catalog, records = recorded(files, tmp_path / "cache")
    read_all(catalog)
    assert records.cache.failures()["damaged"] == 1


def test_a_full_cache_keeps_what_it_has_and_reads_the_rest_from_the_files(
    files: ExpertCatalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fill_module, "NUM_THREADS", 1)  # each may pass the size by what it writes
    catalog, records = recorded(files, tmp_path / "cache", 3 * PAGE_BYTES)
    records.open()
    spans = records.source.layout.spans.values()
    filling = Fill([records], lambda: [(records, *span) for span in spans], has_all=True, name="repacking")
    filling.start()
    while filling.progress().held_bytes < 3 * PAGE_BYTES:
        assert not threading.Event().wait(0.01)
    filling.stop()
    assert filling.progress().reason == "the disk has no room for more"
    read_all(catalog)
    assert records.cache.hit_bytes == 3 * PAGE_BYTES


def test_room_is_made_of_files_that_no_process_uses(files: ExpertCatalog, tmp_path: Path) -> None:
    _, records = recorded(files, tmp_path / "cache")
    fill(records)
    assert records.opened.file is not None
    used, unused = records.opened.file.path, tmp_path / "cache" / f"{'0' * 40}{DATA}"
    unused.write_bytes(bytes(10 * PAGE_BYTES))
    unused.chmod(0o600)
    cache = records.cache
    cache.max_bytes = cache.stored_bytes + PAGE_BYTES
    cache.make_room(PAGE_BYTES)
    assert used.exists()
    assert not unused.exists()


def test_experts_that_are_one_read_already_need_no_records(
    files: ExpertCatalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    assert with_records(files, "tiny", DiskCache(tmp_path / "cache")) is None
