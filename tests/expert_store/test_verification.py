"""Verification reads every record and finds the damaged ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from expert_store import ExpertKey, Pack, open_pack, unreadable_experts
from tests.expert_store.packs import LAYOUT, NUM_EXPERTS, NUM_LAYERS, RECORDS_PER_FILE, make_source, pack


@pytest.fixture
def opened(tmp_path: Path) -> Pack:
    pack(make_source(tmp_path / "model"), tmp_path / "out")
    return open_pack(tmp_path / "out")


def damage(opened: Pack, number: int) -> None:
    """Flip a bit of a record, by its number in order of layers and experts."""
    path = opened.data_folder.path / f"experts-{number // RECORDS_PER_FILE:05}.pack"
    raw = bytearray(path.read_bytes())
    raw[number % RECORDS_PER_FILE * LAYOUT.slot_bytes + 17] ^= 4
    path.write_bytes(raw)


def test_an_intact_pack_is_read_completely(opened: Pack) -> None:
    read: list[int] = []
    assert unreadable_experts(opened.catalog, read.append) == {}
    assert sum(read) == opened.catalog.total_bytes == NUM_LAYERS * NUM_EXPERTS * LAYOUT.slot_bytes


def test_every_damaged_expert_is_named_and_no_other(opened: Pack) -> None:
    damage(opened, 2)
    damage(opened, 5)
    read: list[int] = []
    found = unreadable_experts(opened.catalog, read.append)
    assert list(found) == [ExpertKey(0, 2), ExpertKey(1, 1)]
    assert "the checksum of its record in experts-00001.pack is" in found[ExpertKey(1, 1)]
    assert sum(read) == opened.catalog.total_bytes


def test_a_file_that_was_cut_short_after_it_was_opened_is_reported(opened: Pack) -> None:
    with (opened.data_folder.path / "experts-00000.pack").open("r+b") as file:
        file.truncate(LAYOUT.slot_bytes)
    found = unreadable_experts(opened.catalog, lambda _: None)
    assert list(found) == [ExpertKey(0, 1), ExpertKey(0, 2)]
    assert "cut short" in found[ExpertKey(0, 1)]
