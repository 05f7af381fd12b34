"""The late device finds each order that is missing, in a store where it is missing on purpose."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from expert_store import ExpertStore
from expert_store.layout_pool import LayoutPool
from tests.expert_store.late_device import PROBLEMS, LateDevice
from tests.expert_store.lease_rows import one_row_each
from tests.expert_store.records import LAYOUT, make_records

EXPERTS, ROUNDS = 8, 12


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ExpertStore]:
    slot = LAYOUT.slot_bytes
    store = ExpertStore(make_records(tmp_path), 2 * slot, device_bytes=2 * slot)
    yield store
    store.close()
    PROBLEMS.clear()


@pytest.fixture
def device() -> Iterator[LateDevice]:
    device = LateDevice()
    yield device
    device.close()
    PROBLEMS.clear()


def values(store: ExpertStore) -> list[int]:
    """Use all experts of a layer many times; return what they held."""
    found = []
    for turn in range(ROUNDS * EXPERTS):
        with store.lease(one_row_each(0, [turn % EXPERTS])) as lease:
            found += [int(weights["weight"][0]) for _, weights in lease]
    store.close()
    return found


RIGHT = list(range(EXPERTS)) * ROUNDS


def test_a_store_whose_events_order_everything_has_no_problem(store: ExpertStore) -> None:
    assert values(store) == RIGHT
    assert not PROBLEMS


def test_compute_that_does_not_wait_for_a_copy_reads_nan(store: ExpertStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LayoutPool, "weights", lambda self, entry: self.device_arena.weights(entry.slot))
    assert -1 in values(store)  # an integer of ones


def test_a_copy_that_does_not_wait_for_the_last_use_is_found(
    store: ExpertStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first: list[Any] = []

    def mark_once(device: LateDevice) -> Any:
        first.append(mark(device))
        return first[0]

    mark = LateDevice.mark
    monkeypatch.setattr(LateDevice, "mark", mark_once)
    values(store)
    assert "a slot of the device was overwritten while compute still read it" in PROBLEMS


def test_a_copy_without_any_event_is_found(store: ExpertStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LayoutPool, "mark_use", lambda _: None)
    store.resize(device_bytes=3 * LAYOUT.slot_bytes)
    monkeypatch.setattr(LateDevice, "mark", lambda _: None)
    store.resize(device_bytes=2 * LAYOUT.slot_bytes)
    values(store)
    assert any(problem.startswith("a copy is ordered after nothing") for problem in PROBLEMS)


def test_host_memory_that_changes_before_its_copy_is_found(device: LateDevice) -> None:
    memory, source = device.allocate(64), torch.zeros(64, dtype=torch.uint8)
    copies = [device.copy(source, memory, device.mark()) for _ in range(8)]  # some of them happen at once
    source.fill_(1)
    device.wait(copies[-1])
    assert "host memory was used for something else before it was copied to the device" in PROBLEMS


def test_a_copy_happens_when_its_end_is_waited_for(device: LateDevice) -> None:
    memory = device.allocate(64)
    assert memory.unique().tolist() == [255]
    source = torch.arange(64, dtype=torch.uint8)
    device.wait(device.copy(source, memory, device.mark()))
    assert torch.equal(memory, source)
