"""Measured bandwidths on a machine that is so busy that one round takes all of the time."""

from __future__ import annotations

import pytest
import torch

from server.inspection import bandwidth


def test_a_first_round_that_takes_all_of_the_time_is_followed_by_a_measured_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bandwidth, "MEMORY_SECONDS", 0.0)
    monkeypatch.setattr(bandwidth, "MATRIX_BYTES", 1 << 16)
    assert bandwidth.measure_memory(torch.device("cpu")) > 0
