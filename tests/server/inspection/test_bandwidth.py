"""Bandwidths are measured on busy machines, and on those without huge pages."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch

from expert_store import catalog
from server.inspection import bandwidth
from tests.expert_store.files import make_catalog


def test_a_first_round_that_takes_all_of_the_time_is_followed_by_a_measured_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bandwidth, "MEMORY_SECONDS", 0.0)
    monkeypatch.setattr(bandwidth, "MOST_MATRIX_BYTES", 1 << 16)
    assert bandwidth.measure_memory(torch.device("cpu"), bandwidth.begin_matrix().result()) > 0


def test_memory_is_measured_without_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "MOST_MATRIX_BYTES", 1 << 16)
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 12345)  # advice that no kernel knows
    assert bandwidth.measure_memory(torch.device("cpu"), bandwidth.begin_matrix().result()) > 0


@pytest.mark.parametrize(
    ("size", "mebibytes"), [("32768K\n", 128), ("512K\n", 128), ("49152K\n", 192), ("1048576K\n", 256), ("0.5\n", 256)]
)
def test_the_matrix_is_as_small_as_the_last_cache_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str, mebibytes: int
) -> None:
    (tmp_path / "size").write_text(size)
    monkeypatch.setattr(bandwidth, "CACHE_SIZE", tmp_path / "size")
    assert bandwidth._matrix_bytes() == mebibytes << 20


def test_the_matrix_is_large_where_the_last_cache_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "CACHE_SIZE", tmp_path / "size")
    assert bandwidth._matrix_bytes() == 256 << 20


def test_the_gain_of_records_is_measured_where_parts_lie_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "MAX_GAP_BYTES", -1)
    monkeypatch.setattr(bandwidth, "RECORD_SECONDS", 0.01)
    gain = bandwidth.measure_record_gain(make_catalog(tmp_path))
    assert gain is not None
    assert gain > -1


def test_experts_of_one_read_have_no_gain_of_records(tmp_path: Path) -> None:
    assert bandwidth.measure_record_gain(make_catalog(tmp_path)) is None
