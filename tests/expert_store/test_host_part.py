"""Leases whose missing experts stay in host memory, as the device has no slot for them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest

from expert_store import ExpertKey, ExpertLoadError, ExpertStore
from expert_store.lease import Lease
from expert_store.sources.file import DirectFile
from tests.expert_store.lease_rows import one_row_each
from tests.expert_store.records import LAYOUT, make_records
from tests.expert_store.waiting import wait_until_idle

SLOT = LAYOUT.slot_bytes


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ExpertStore]:
    """Yield a store whose device has two slots, with experts 0 and 1 of layer 0 in them."""
    store = ExpertStore(make_records(tmp_path), 4 * SLOT, device_bytes=2 * SLOT)
    with store.lease(one_row_each(0, (0, 1))) as lease:
        list(lease)
    wait_until_idle(store)
    yield store
    store.close()
    store.check_integrity()


def numbers(lease: Lease) -> dict[int, int]:
    """Return the first number of each expert that is computed from host memory."""
    part = lease.on_host()
    if part is None:
        return {}
    offset = LAYOUT.offsets["weight"]
    return {
        key.expert: ctypes.c_int32.from_address(int(address) + offset).value
        for key, address in zip(part.keys, part.addresses, strict=True)
    }


def test_experts_that_the_device_lacks_are_read_into_host_memory_alone(store: ExpertStore) -> None:
    with store.lease(one_row_each(0, (0, 5, 6)), uses_host=True) as lease:
        found = numbers(lease)
        assert [key.expert for key, _ in lease] == [0]
    assert found == {5: 5, 6: 6}
    assert {key.expert for key, tier in store.residents().items() if tier == "device"} == {0, 1}


def test_free_slots_of_the_device_are_filled_first(store: ExpertStore) -> None:
    store.evict([ExpertKey(0, 1)])
    with store.lease(one_row_each(0, (5, 6)), uses_host=True) as lease:
        assert numbers(lease) == {6: 6}
        assert [key.expert for key, _ in lease] == [5]


def test_what_is_computed_from_host_memory_is_counted(store: ExpertStore) -> None:
    for _ in range(2):
        with store.lease(one_row_each(0, (0, 5)), uses_host=True) as lease:
            numbers(lease)
    statistics = store.statistics()
    assert statistics.host_computed == 2
    assert statistics.lookups["host", "decode"] == 1


def test_an_expert_that_can_not_be_read_is_named(store: ExpertStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(DirectFile, "read", fail)
    with (
        pytest.raises(ExpertLoadError, match="expert 5"),
        store.lease(one_row_each(0, (0, 5)), uses_host=True) as lease,
    ):
        numbers(lease)
