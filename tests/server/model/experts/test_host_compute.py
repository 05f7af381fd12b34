"""The CPU's choice of missed experts to compute, and of the steps in which it does."""

from __future__ import annotations

import numpy as np
import pytest

from expert_store import ExpertKey
from server.model.experts import host_compute
from server.model.experts.host_compute import HostCompute, MissPlacement, choices_of
from server.model.experts.step_record import StepRecord

HOST = HostCompute.__new__(HostCompute)  # never run here


def test_choices_are_sorted_by_expert_and_ascend_within_each() -> None:
    chosen = np.array([[4, 1], [2, 4], [1, 9]])
    choices, spans = choices_of(chosen, [ExpertKey(0, 4), ExpertKey(0, 1)])
    assert choices.tolist() == [0, 3, 1, 4]
    assert list(spans.values()) == [(0, 2), (2, 4)]


@pytest.mark.parametrize(("copied", "computed"), [(1.0, 0.5), (0.5, 1.0)])
def test_auto_ends_with_what_makes_whole_steps_faster(
    monkeypatch: pytest.MonkeyPatch, copied: float, computed: float
) -> None:
    now = 0.0
    monkeypatch.setattr(host_compute.time, "perf_counter", lambda: now)
    placement, record = MissPlacement("auto", HOST), StepRecord()
    record.cost.num_lookups = 8
    for _ in range(500):
        with placement.measured(record):
            now += copied if placement.now is None else computed
    assert (placement.now is HOST) == (computed < copied)
