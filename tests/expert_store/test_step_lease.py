"""Step leases: they hold all experts in their slots, and count what the step used."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from expert_store import ExpertKey, ExpertStore, StepLease
from expert_store.routing_log.log import RoutingLogHeader, RoutingLogWriter, read_routing_log
from expert_store.store_lock import MOST_DEFERRED
from tests.expert_store.lease_rows import one_row_each
from tests.expert_store.records import LAYOUT, make_records, value_of
from tests.expert_store.waiting import wait_until_idle

LAYERS, EXPERTS = 3, 8
ALL = LAYERS * EXPERTS
SLOT = LAYOUT.slot_bytes
VARIANT = "other"
KEYS = [ExpertKey(layer, expert) for layer in range(LAYERS) for expert in range(EXPERTS)]
ROWS = {0: [3, 0, 0, 1, 0, 0, 0, 0], 1: [0, 0, 0, 0, 0, 0, 2, 2], 2: [0] * EXPERTS}
MakeStore = Callable[..., ExpertStore]


@pytest.fixture
def make_store(tmp_path: Path) -> Iterator[MakeStore]:
    """Stores whose experts are all in memory, unless ``is_filled`` is False."""
    catalog = make_records(tmp_path, LAYERS, EXPERTS, [VARIANT])
    stores: list[ExpertStore] = []

    def make(slots: int = ALL, is_filled: bool = True, **options: Any) -> ExpertStore:
        store = ExpertStore(catalog, slots * SLOT, **options)
        stores.append(store)
        if is_filled:
            fill(store)
        return store

    yield make
    for store in stores:
        store.close()
        store.check_integrity()


def fill(store: ExpertStore) -> None:
    for layer in range(LAYERS):
        with store.lease(one_row_each(layer, range(EXPERTS)), "prefill") as lease:
            assert len(list(lease)) == EXPERTS
    wait_until_idle(store)


def held(store: ExpertStore) -> StepLease:
    hold = store.hold_residents()
    assert hold is not None
    return hold


def counts(rows: dict[int, list[int]]) -> tuple[list[int], npt.NDArray[np.int64]]:
    return [*rows], np.array([*rows.values()], np.int64).reshape(len(rows), max(map(len, rows.values()), default=0))


def are_in_place(hold: StepLease) -> bool:
    """Return True if every address leads to the weights of its expert."""
    return all(
        int(np.frombuffer(ctypes.string_at(int(hold.addresses[key.layer, key.expert]), 4), np.int32)[0])
        == value_of(key)
        for key in KEYS
    )


def test_addresses_lead_to_the_weights_of_every_expert(make_store: MakeStore) -> None:
    with held(make_store()) as hold:
        assert hold.addresses.shape == (LAYERS, EXPERTS)
        assert hold.addresses.dtype == np.uint64
        assert are_in_place(hold)


def missing(hold: StepLease) -> set[ExpertKey]:
    return {key for key in KEYS if not hold.addresses[key.layer, key.expert]}


def test_experts_that_come_and_go_are_followed(make_store: MakeStore) -> None:
    store = make_store(is_filled=False)
    with held(store) as hold:
        assert missing(hold) == set(KEYS)
    fill(store)
    with held(store) as hold:
        assert hold.holds_all
        assert are_in_place(hold)
    gone = {ExpertKey(1, 4), ExpertKey(2, 0)}
    store.evict(gone)
    with held(store) as hold:
        assert missing(hold) == gone
        assert not hold.holds_all
    fill(store)
    with held(store) as hold:
        assert are_in_place(hold)


def test_more_changes_than_are_remembered_are_followed(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expert_store.tier.RECENT_CHANGES", 3)
    store = make_store()
    held(store).close(*counts({}))
    store.evict(KEYS[:5])
    with held(store) as hold:
        assert missing(hold) == set(KEYS[:5])


@pytest.mark.parametrize("slots", [ALL - 1, ALL])
def test_there_is_none_if_all_are_needed_and_one_is_missing(make_store: MakeStore, slots: int) -> None:
    store = make_store(slots)
    store.evict([ExpertKey(0, 0)])
    assert store.hold_residents(needs_all=True) is None


def test_an_expert_whose_slot_a_variant_has_is_missing(make_store: MakeStore) -> None:
    store = make_store()
    with store.lease({ExpertKey(0, 1, VARIANT): 1}) as lease:
        list(lease)
    assert store.tiers()["host"].num_resident == ALL
    with held(store) as hold:
        assert len(missing(hold)) == 1


def use_variant(store: ExpertStore, come: threading.Event) -> None:
    """Lease an expert of the variant, which has no slot yet, then set ``come``."""
    with store.lease({ExpertKey(0, 1, VARIANT): 1}) as lease:
        list(lease)
    come.set()


def test_there_is_none_while_a_lease_waits_for_a_slot(make_store: MakeStore) -> None:
    store = make_store()
    come = threading.Event()
    with held(store):
        user = threading.Thread(target=use_variant, args=(store, come))
        user.start()
        while store.hold_residents() is not None:
            threading.Event().wait(0.001)
        assert not come.is_set()
    user.join(30)
    assert come.is_set()


def test_a_pin_that_finds_all_slots_held_is_loaded_at_the_end(make_store: MakeStore) -> None:
    store = make_store(ALL - 1)
    with held(store) as hold:
        (absent,) = missing(hold)
        store.pin([absent])
        assert absent not in store.residents()
    wait_until_idle(store)
    assert absent in store.residents()


def test_many_steps_are_counted_without_anybody_asking(make_store: MakeStore) -> None:
    store = make_store()
    counter = store._state.statistics.lookups
    before = counter["host", "decode"]
    for _ in range(MOST_DEFERRED):
        held(store).close(*counts(ROWS))
    assert counter["host", "decode"] - before == MOST_DEFERRED * 4


def test_layers_are_counted_in_parts(make_store: MakeStore) -> None:
    store = make_store()
    before = store.statistics().tokens.copy()
    held(store).close(*counts({0: ROWS[0]}))
    held(store).close(*counts({1: ROWS[1], 2: ROWS[2]}))
    held(store).close(*counts({2: ROWS[1], 0: ROWS[0]}))
    wanted = np.array(list(ROWS.values())) + np.array([ROWS[0], ROWS[2], ROWS[1]])
    assert (store.statistics().tokens - before).tolist() == wanted.tolist()


def test_experts_are_held_in_the_device_tier_if_there_is_one(make_store: MakeStore) -> None:
    store = make_store(device_bytes=ALL * SLOT)
    hold = held(store)
    slots = np.array([hold.slots(layer) for layer in range(LAYERS)])
    assert sorted(slots.ravel().tolist()) == list(range(ALL))
    found = [int(hold.arena(key.layer)[slots[key.layer, key.expert]].view(torch.int32)[0]) for key in KEYS]
    assert found == [value_of(key) for key in KEYS]
    assert store.evict(KEYS) == 0
    hold.close(*counts({0: ROWS[0]}))


def test_a_slot_of_the_device_is_free_again_after_the_hold(make_store: MakeStore) -> None:
    store = make_store(device_bytes=2 * SLOT, is_filled=False)
    for first in range(0, EXPERTS, 2):
        with store.lease(one_row_each(0, [first, first + 1])) as lease:
            assert len(list(lease)) == 2
        with held(store) as hold:
            assert (hold.slots(0) >= 0).nonzero()[0].tolist() == [first, first + 1]


def test_a_resize_of_the_device_goes_before_a_hold(make_store: MakeStore) -> None:
    store = make_store(device_bytes=ALL * SLOT)
    with held(store):
        resize = threading.Thread(target=store.resize, kwargs={"device_bytes": ALL * SLOT // 2})
        resize.start()
        while store.hold_residents() is not None:
            pass
    resize.join()
    assert held(store).slots(0).max() < ALL // 2


def test_a_later_hold_enters_what_has_moved_into_the_same_table(make_store: MakeStore) -> None:
    store = make_store()
    first, second = held(store), held(store)
    first.close(*counts({}))
    second.close(*counts({}))
    store.evict([ExpertKey(1, 4)])
    with held(store) as third:
        assert first.version == second.version != third.version
        assert third.addresses is first.addresses
        assert missing(first) == {ExpertKey(1, 4)}


def test_nothing_is_evicted_while_all_are_held(make_store: MakeStore) -> None:
    store = make_store()
    with held(store) as hold:
        assert store.evict(KEYS) == 0
        assert are_in_place(hold)
    assert store.evict(KEYS) == ALL


def test_two_holds_end_one_by_one(make_store: MakeStore) -> None:
    store = make_store()
    with held(store):
        with held(store):
            pass
        assert store.evict(KEYS) == 0
    assert store.evict(KEYS) == ALL


def test_a_smaller_budget_waits_for_the_end(make_store: MakeStore) -> None:
    store = make_store()
    with held(store) as hold:
        store.resize(host_bytes=5 * SLOT)
        assert store.tiers()["host"].num_resident == ALL
        assert are_in_place(hold)
    assert store.tiers()["host"].num_slots == store.tiers()["host"].num_resident == 5


def test_none_begins_before_another_ends_while_a_smaller_budget_waits(make_store: MakeStore) -> None:
    store = make_store()
    with held(store):
        with held(store):
            store.resize(host_bytes=5 * SLOT)
        assert store.hold_residents(overlaps=True) is None
    with held(store):
        assert store.hold_residents(overlaps=True) is not None


def test_a_larger_budget_comes_at_once(make_store: MakeStore) -> None:
    store = make_store()
    store.resize(host_bytes=(ALL - 1) * SLOT)
    store.resize(host_bytes=ALL * SLOT)
    fill(store)
    with held(store) as hold:
        store.resize(host_bytes=ALL * SLOT)
        assert are_in_place(hold)


def test_pins_come_and_go_meanwhile(make_store: MakeStore) -> None:
    store = make_store()
    store.pin([ExpertKey(0, 0)])
    with held(store) as hold:
        assert store.pin([ExpertKey(0, 3), ExpertKey(1, 6)]) == 2
        assert store.unpin([ExpertKey(0, 0)]) == 1
        hold.close(*counts(ROWS))
    assert store.evict(KEYS) == ALL - 2


def test_leases_and_prefetches_go_on_meanwhile(make_store: MakeStore) -> None:
    store = make_store()
    with held(store), store.lease(one_row_each(1, [2, 3])) as lease:
        assert [key.expert for key, _ in lease] == [2, 3]
        assert store.prefetch([ExpertKey(2, 1)]) == 0
    assert store.evict(KEYS) == ALL


def test_a_lease_that_needs_a_slot_meanwhile_gets_it_at_the_end(make_store: MakeStore) -> None:
    store = make_store()
    come = threading.Event()
    with held(store) as hold:
        user = threading.Thread(target=use_variant, args=(store, come))
        user.start()
        while not store.statistics().lookups["disk", "decode"]:
            threading.Event().wait(0.001)
        assert not come.is_set()
        assert are_in_place(hold)
    assert come.wait(30)
    user.join()


def test_a_store_that_closes_leaves_what_is_held_in_place(make_store: MakeStore) -> None:
    store = make_store()
    with held(store) as hold:
        store.close()
        assert are_in_place(hold)
        hold.close(*counts(ROWS))
    assert store.statistics().tokens.sum() == ALL + 8


def test_it_counts_what_a_lease_of_each_layer_would(make_store: MakeStore, tmp_path: Path) -> None:
    header = RoutingLogHeader("made-up", dict.fromkeys(range(LAYERS), EXPERTS), dict.fromkeys(range(LAYERS), SLOT))
    paths, found = [tmp_path / "step.jsonl", tmp_path / "layers.jsonl"], []
    for path in paths:
        with RoutingLogWriter(path, header) as writer:
            store = make_store(recorder=writer)
            for _ in range(3):
                if path is paths[0]:
                    with held(store) as hold:
                        hold.close(*counts(ROWS), "decode")
                    continue
                for layer, numbers in ROWS.items():
                    asked = {ExpertKey(layer, expert): number for expert, number in enumerate(numbers) if number}
                    with store.lease(asked, "decode") as lease:
                        list(lease)
        statistics = store.statistics()
        found.append((statistics.tokens.tolist(), statistics.lookups, store.hit_ratios()))
    assert found[0] == found[1]
    assert read_routing_log(paths[0]) == read_routing_log(paths[1])


@pytest.mark.parametrize("policy", ["lru", "lfru"])
def test_what_it_used_is_what_stays_when_others_have_to_go(make_store: MakeStore, policy: str) -> None:
    store = make_store(policy=policy)
    for _ in range(3):
        held(store).close(*counts({0: [1, 0, 0, 1, 0, 0, 0, 1], 1: [1] * EXPERTS, 2: [1] * EXPERTS}))
    store.resize(host_bytes=9 * SLOT)
    assert {key.expert for key in store.residents() if key.layer == 0} <= {0, 3, 7}


def test_what_was_prefetched_counts_as_used_once_it_is(make_store: MakeStore) -> None:
    store = make_store()
    store.evict([ExpertKey(0, 0), ExpertKey(0, 1)])
    assert store.preload([ExpertKey(0, 0), ExpertKey(0, 1)], timeout_seconds=30) == 2
    wait_until_idle(store)
    for _ in range(2):
        held(store).close(*counts(ROWS))
    assert store.statistics().prefetches["used"] == 1
    store.evict([ExpertKey(0, 1)])
    assert dict(store.statistics().prefetches) == {"used": 1, "wasted": 1}


def test_a_step_that_failed_counts_nothing_and_ends_its_hold(make_store: MakeStore) -> None:
    store = make_store()
    before = store.statistics()
    with pytest.raises(RuntimeError, match="in a kernel"), held(store):
        raise RuntimeError("in a kernel")
    assert store.statistics().lookups == before.lookups
    assert store.evict(KEYS) == ALL


def test_counts_that_do_not_fit_the_layers_are_refused(make_store: MakeStore) -> None:
    store = make_store()
    with pytest.raises(ValueError, match="7 counts for the 8 experts of these layers"), held(store) as hold:
        hold.close(*counts({1: [1] * 7}))
    assert store.evict(KEYS) == ALL


def test_a_second_end_is_refused(make_store: MakeStore) -> None:
    store = make_store()
    with held(store) as hold:
        hold.close(*counts(ROWS))
        with pytest.raises(ValueError, match="closed already"):
            hold.close(*counts(ROWS))
    with held(store):
        assert store.evict(KEYS) == 0
