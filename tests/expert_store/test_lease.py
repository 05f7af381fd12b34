"""The batches of a lease, and their order."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expert_store import BASE, ExpertKey, ExpertLoadError, ExpertStore, ReadyExperts
from tests.expert_store.gated_reads import GatedReads
from tests.expert_store.lease_rows import one_row_each
from tests.expert_store.records import LAYOUT, make_records, value_of
from tests.expert_store.waiting import wait_until_idle

VARIANT = "other"
MakeStore = Callable[..., ExpertStore]


@pytest.fixture
def make_store(tmp_path: Path) -> Iterator[MakeStore]:
    catalog = make_records(tmp_path, variants=[VARIANT])
    stores: list[ExpertStore] = []

    def make(slots: int, **options: Any) -> ExpertStore:
        stores.append(ExpertStore(catalog, slots * LAYOUT.slot_bytes, **options))
        return stores[-1]

    yield make
    for store in stores:
        store.close()
        store.check_integrity()


def fill(store: ExpertStore, layer: int, *experts: int) -> None:
    with store.lease(one_row_each(layer, experts)) as lease:
        assert len(list(lease)) == len(experts)
    wait_until_idle(store)


def value_at(address: np.uint64) -> int:
    """Return the first weight of the slot at an address."""
    start = int(address) + LAYOUT.offsets["weight"]
    return int(np.frombuffer(ctypes.string_at(start, 4), np.int32)[0])


def experts_of(ready: ReadyExperts) -> list[int]:
    return [key.expert for key in ready.keys]


def test_all_that_is_resident_comes_at_once_and_then_what_arrives(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(16, num_readers=4)
    fill(store, 0, 1, 5, 7)
    reads = GatedReads(monkeypatch)
    with store.lease(one_row_each(0, [0, 1, 2, 5, 7])) as lease:
        batches = lease.batches()
        assert experts_of(next(batches)) == [1, 5, 7]
        reads.is_open.set()
        wait_until_idle(store)
        assert sorted(experts_of(next(batches))) == [0, 2]
        assert next(batches, None) is None


def test_all_missing_experts_are_being_read_before_the_first_batch_is_asked_for(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(16, num_readers=4)
    fill(store, 0, 3)
    reads = GatedReads(monkeypatch)
    with store.lease(one_row_each(0, range(5))):
        for _ in range(4):
            reads.wait_until_started()
        reads.is_open.set()


@pytest.mark.parametrize("device_bytes", [0, 16 * LAYOUT.slot_bytes])
def test_addresses_and_offsets_lead_to_the_weights(make_store: MakeStore, device_bytes: int) -> None:
    store = make_store(16, device_bytes=device_bytes)
    for _ in range(2):  # read, and found
        with store.lease(one_row_each(1, [2, 4, 6])) as lease:
            for ready in lease.batches():
                assert ready.addresses.typecode == "Q"
                assert [value_at(address) for address in ready.addresses] == [value_of(key) for key in ready.keys]


def test_variants_of_one_expert_are_leased_together(make_store: MakeStore) -> None:
    store = make_store(16)
    keys = [ExpertKey(0, 3), ExpertKey(0, 3, VARIANT), ExpertKey(0, 4, VARIANT)]
    for _ in range(2):
        with store.lease(dict.fromkeys(keys, 2)) as lease:
            assert {key: int(weights["weight"][0]) for key, weights in lease} == {key: value_of(key) for key in keys}
    assert store.statistics().lookups == {("disk", "decode"): 3, ("host", "decode"): 3}
    assert store.statistics().tokens[0, 3:5].tolist() == [8, 4]
    ratios = store.hit_ratios()
    assert ratios is not None
    assert ratios.realised == ratios.optimal == 0.5


def test_a_variant_does_not_stand_in_for_the_expert_in_the_table_of_device_slots(make_store: MakeStore) -> None:
    store = make_store(16, device_bytes=4 * LAYOUT.slot_bytes)
    with store.lease({ExpertKey(0, 3, VARIANT): 1}) as lease:
        list(lease)
    assert store.slot_table[0, 3] == -1


def test_a_lease_of_nothing_yields_nothing(make_store: MakeStore) -> None:
    with make_store(4).lease({}) as lease:
        assert not list(lease.batches())
    assert lease.num_lookups == 0


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ([ExpertKey(0, 1), ExpertKey(1, 1)], r"a lease is of one layer, not of layers \[0, 1\]"),
        ([ExpertKey(0, 1), ExpertKey(0, 8)], "the model has no expert 8 of layer 0"),
        ([ExpertKey(0, -1)], "the model has no expert -1 of layer 0"),
        ([ExpertKey(7, 1)], "the model has no experts in layer 7"),
        ([ExpertKey(0, 1, "third")], r"the model has no expert 1 of layer 0 \(third\)"),
    ],
)
def test_what_the_model_has_not_is_refused_and_nothing_is_leased(
    make_store: MakeStore, keys: list[ExpertKey], complaint: str
) -> None:
    store = make_store(16)
    fill(store, 0, 1)
    fill(store, 1, 1)
    before = store.statistics()
    with pytest.raises(ValueError, match=complaint), store.lease(dict.fromkeys(keys, 1)):
        pass
    assert store.evict([ExpertKey(0, 1), ExpertKey(1, 1)]) == 2
    assert store.statistics().lookups == before.lookups
    assert (store.statistics().tokens == before.tokens).all()


def test_a_pin_of_what_the_model_has_not_is_refused(make_store: MakeStore) -> None:
    store = make_store(16)
    with pytest.raises(ValueError, match="the model has no expert 8 of layer 0"):
        store.pin([ExpertKey(0, 1), ExpertKey(0, 8)])
    assert not store.pinned


def test_a_variant_in_a_layer_without_experts_is_refused(tmp_path: Path) -> None:
    catalog = make_records(tmp_path)
    with pytest.raises(ValueError, match="the model has no expert 1 of layer 9"):
        catalog.with_variant(VARIANT, {(9, 1): catalog.recipe(ExpertKey(0, 1))})


def test_what_was_found_stays_through_all_waves_and_the_rest_comes_one_by_one(make_store: MakeStore) -> None:
    store = make_store(6)
    fill(store, 0, 6, 7)
    with store.lease(one_row_each(0, range(8))) as lease:
        batches = lease.batches()
        found = next(batches)
        assert experts_of(found) == [6, 7]
        assert found.gives_back
        for ready in batches:
            assert len(ready.keys) == 1 or not ready.gives_back
            assert [value_at(address) for address in found.addresses] == [6, 7]
            assert [value_at(address) for address in ready.addresses] == experts_of(ready)
    assert lease.num_lookups == 8


def test_a_failed_read_is_raised_after_the_hits_were_yielded(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(16)
    fill(store, 0, 1)
    reads = GatedReads(monkeypatch, OSError(5, "Input/output error"))
    with store.lease(one_row_each(0, [1, 2])) as lease:
        batches = lease.batches()
        assert experts_of(next(batches)) == [1]
        reads.is_open.set()
        with pytest.raises(ExpertLoadError, match="expert 2 of layer 0"):
            next(batches)
    assert store.evict([ExpertKey(0, 1)]) == 1


class ListRecorder:
    """Keeps what it records in a list."""

    def __init__(self) -> None:
        self.leases: list[tuple[int, list[int], str, bool]] = []

    def record(self, layer: int, experts: Any, phase: str, *, is_passing: bool = False) -> None:
        self.leases.append((layer, list(experts), phase, is_passing))


def test_a_recorder_records_each_expert_once_whatever_its_variants(make_store: MakeStore) -> None:
    recorder = ListRecorder()
    store = make_store(16, recorder=recorder)
    keys = [ExpertKey(1, 5, VARIANT), ExpertKey(1, 5, BASE), ExpertKey(1, 2)]
    with store.lease(dict.fromkeys(keys, 1), "prefill"):
        pass
    with store.lease_passing(one_row_each(0, [3])):
        pass
    assert recorder.leases == [(1, [5, 2], "prefill", False), (0, [3], "prefill", True)]


def test_a_batch_waits_only_for_what_is_not_there(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """One expert of two is ready: it is yielded while the other is still being read."""
    store = make_store(16, num_readers=2)
    gate, real = threading.Event(), store._state.reader.submit

    def submit(job: Any) -> None:
        if job.key.expert == 2:
            done = job.done
            job.done = lambda error: (gate.wait(30), done(error))
        real(job)

    monkeypatch.setattr(store._state.reader, "submit", submit)
    with store.lease(one_row_each(0, [1, 2])) as lease:
        batches = lease.batches()
        assert experts_of(next(batches)) == [1]
        gate.set()
        assert experts_of(next(batches)) == [2]
