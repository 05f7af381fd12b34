"""Bandwidths are measured on busy machines, and on those without huge pages."""

from __future__ import annotations

import mmap

import pytest
import torch

from server.inspection import bandwidth


def test_a_first_round_that_takes_all_of_the_time_is_followed_by_a_measured_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bandwidth, "MEMORY_SECONDS", 0.0)
    monkeypatch.setattr(bandwidth, "MATRIX_BYTES", 1 << 16)
    assert bandwidth.measure_memory(torch.device("cpu")) > 0


def test_memory_is_measured_without_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "MATRIX_BYTES", 1 << 16)
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 12345)  # advice that no kernel knows
    assert bandwidth.measure_memory(torch.device("cpu")) > 0
