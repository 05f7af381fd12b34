"""The store over real files: leases, single-flight loads, waves, failures, budgets."""

from __future__ import annotations

import gc
import mmap
import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from expert_store import BudgetError, ExpertKey, ExpertLoadError, ExpertStore, StoreClosedError, least_bytes
from expert_store.arena import NORESERVE
from expert_store.routing_log.recent_window import Window
from tests.expert_store.files import expected, make_catalog
from tests.expert_store.gated_reads import GatedReads
from tests.expert_store.lease_rows import one_row_each
from tests.expert_store.waiting import wait_until_idle

MakeStore = Callable[..., ExpertStore]


@pytest.fixture
def make_store(tmp_path: Path) -> Iterator[MakeStore]:
    """Stores over one set of files, sized in slots; each is checked and closed at the end."""
    catalog = make_catalog(tmp_path)
    slot_bytes = catalog.layout(0).slot_bytes
    stores: list[ExpertStore] = []

    def make(slots: int, **options: Any) -> ExpertStore:
        stores.append(ExpertStore(catalog, slots * slot_bytes, **options))
        return stores[-1]

    yield make
    for store in stores:
        store.close()
        store.check_integrity()


def use(store: ExpertStore, layer: int, *experts: int) -> list[int]:
    """Lease experts, check their weights, and return them in the order in which they came."""
    order = []
    with store.lease(one_row_each(layer, experts)) as lease:
        for key, weights in lease:
            assert torch.equal(weights["gate_up"], expected(layer, key.expert))
            order.append(key.expert)
    assert sorted(order) == sorted(experts)
    return order


def lookups(store: ExpertStore) -> dict[str, int]:
    counts = {"host": 0, "disk": 0}
    for (tier, _), count in store.statistics().lookups.items():
        counts[tier] += count
    return counts


def test_a_second_look_finds_the_expert_in_memory(make_store: MakeStore) -> None:
    store = make_store(4)
    use(store, 0, 1, 2)
    use(store, 0, 1, 2)
    assert lookups(store) == {"host": 2, "disk": 2}


def test_experts_in_memory_are_yielded_before_those_on_disk(make_store: MakeStore) -> None:
    store = make_store(6)
    use(store, 0, 5)
    assert use(store, 0, 1, 2, 5)[0] == 5


def test_a_layer_that_needs_more_experts_than_slots_is_served_in_waves(make_store: MakeStore) -> None:
    store = make_store(2)
    use(store, 0, *range(8))
    use(store, 1, *range(8))
    assert len(store.residents()) == 2


def test_a_resident_expert_is_not_evicted_by_its_own_lease(make_store: MakeStore) -> None:
    """All hits are leased before any victim is chosen."""
    store = make_store(2)
    use(store, 0, 3)
    use(store, 0, 0, 3)
    assert lookups(store) == {"host": 1, "disk": 2}


def test_slots_never_take_more_than_the_budget(make_store: MakeStore) -> None:
    store = make_store(5)
    for layer in (0, 1):
        use(store, layer, *range(8))
    assert store.tiers()["host"].slot_bytes <= store.tiers()["host"].budget_bytes
    assert len(store.residents()) <= store.tiers()["host"].num_slots == 5


def test_a_budget_beyond_all_experts_takes_no_more_than_they_need(make_store: MakeStore) -> None:
    store = make_store(1000)
    assert store.tiers()["host"].num_slots == 16


def test_a_budget_for_less_than_one_expert_is_refused(make_store: MakeStore) -> None:
    with pytest.raises(BudgetError, match=r"give at least \d+"):
        make_store(0)


def test_the_least_budget_holds_the_slots_asked_for(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path, num_layers=3, num_experts=7)
    for slots in range(1, 22):
        store = ExpertStore(catalog, least_bytes(catalog, slots))
        assert store.tiers()["host"].num_slots == slots
        store.close()


def test_many_waiters_share_one_read(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(4)
    reads = GatedReads(monkeypatch)
    with ThreadPoolExecutor(16) as pool:
        users = [pool.submit(use, store, 0, 6) for _ in range(16)]
        reads.wait_until_started()
        reads.is_open.set()
        for user in users:
            user.result(timeout=30)
    assert reads.count == 1
    assert store.statistics().loaded_bytes == 192


def test_a_failed_read_reaches_every_waiter_and_the_next_lease_tries_again(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = GatedReads(monkeypatch, OSError(5, "Input/output error"))
    store = make_store(4)
    with ThreadPoolExecutor(8) as pool:
        users = [pool.submit(use, store, 0, 6) for _ in range(8)]
        reads.wait_until_started()
        while sum(lookups(store).values()) < 8:
            threading.Event().wait(0.001)
        reads.is_open.set()
        for user in users:
            with pytest.raises(ExpertLoadError, match=r"expert 6 of layer 0: .*Input/output error"):
                user.result(timeout=30)
    assert store.statistics().load_failures == 1
    store.check_integrity()
    reads.error = None
    use(store, 0, 6)


def test_a_lease_that_leaves_during_a_read_keeps_nothing(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = GatedReads(monkeypatch)
    store = make_store(1)
    with store.lease(one_row_each(0, [6])):
        reads.wait_until_started()
    reads.is_open.set()
    use(store, 0, 1)


def test_short_reads_are_continued(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    read = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, buffers, offset: read(file, [buffers[0][:7]], offset))
    use(make_store(2), 1, 4)


def test_a_file_cut_short_while_it_serves_is_an_error_not_a_crash(tmp_path: Path, make_store: MakeStore) -> None:
    store = make_store(2)
    os.truncate(tmp_path / "layer1.safetensors", 600)
    with pytest.raises(ExpertLoadError, match="was cut short or replaced"):
        use(store, 1, 7)
    use(store, 0, 7)


def test_a_closed_store_ends_those_who_wait(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = GatedReads(monkeypatch)
    store = make_store(1, num_readers=1)
    with ThreadPoolExecutor(2) as pool:
        user = pool.submit(use, store, 0, 6)
        reads.wait_until_started()
        closer = pool.submit(store.close)
        with pytest.raises(StoreClosedError):
            user.result(timeout=30)
        reads.is_open.set()
        closer.result(timeout=30)


def test_tokens_are_counted_by_layer_and_expert(make_store: MakeStore) -> None:
    store = make_store(4)
    with store.lease({ExpertKey(1, 2): 5, ExpertKey(1, 3): 1}, "prefill") as lease:
        for _ in lease:
            pass
    tokens = store.statistics().tokens
    assert tokens[1, 2] == 5
    assert tokens[1, 3] == 1
    assert tokens.sum() == 6


@pytest.mark.slow
@pytest.mark.parametrize("slots", [1, 3, 9])
def test_random_leases_from_many_threads_always_see_the_right_weights(make_store: MakeStore, slots: int) -> None:
    store = make_store(slots)

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(60):
            use(store, rng.randrange(2), *rng.sample(range(8), rng.randint(1, 6)))
            store.check_integrity()

    with ThreadPoolExecutor(4) as pool:
        for user in [pool.submit(work, seed) for seed in range(4)]:
            user.result(timeout=60)
    assert set(store.residents()) <= {ExpertKey(layer, expert) for layer in range(2) for expert in range(8)}


def test_the_end_of_a_lease_cancels_reads_that_have_not_begun(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = GatedReads(monkeypatch)
    store = make_store(8, num_readers=1)
    with store.lease(one_row_each(0, range(6))):
        reads.wait_until_started()
    reads.is_open.set()
    use(store, 1, 0)
    assert reads.count == 2
    assert len(store.residents()) == 2


def test_reads_go_on_for_those_who_stay(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = GatedReads(monkeypatch)
    store = make_store(8, num_readers=1)
    with ThreadPoolExecutor(1) as pool:
        with store.lease(one_row_each(0, range(6))):
            reads.wait_until_started()
            stays = pool.submit(use, store, 0, 4, 5)
            while sum(lookups(store).values()) < 8:
                threading.Event().wait(0.001)
        reads.is_open.set()
        stays.result(timeout=30)
    assert {key.expert for key in store.residents()} == {0, 4, 5}


def test_pins_stay_and_leave_slots_to_others(make_store: MakeStore) -> None:
    store = make_store(4, least_unpinned=2)
    store.pin([ExpertKey(0, 3), ExpertKey(1, 3)])
    for layer in (0, 1):
        use(store, layer, *range(8))
    assert {ExpertKey(0, 3), ExpertKey(1, 3)} <= store.residents().keys()
    with pytest.raises(BudgetError, match="3 pinned experts leave fewer than 2 of 4 slots to the others; unpin some"):
        store.pin([ExpertKey(0, 4)])
    with pytest.raises(BudgetError, match="2 pinned experts leave fewer than 2 of 3 slots"):
        store.resize(host_bytes=3 * store.catalog.layout(0).slot_bytes)
    assert store.tiers()["host"].num_pinned == 2
    store.unpin([ExpertKey(0, 3), ExpertKey(1, 3)])
    assert store.evict([ExpertKey(0, 3), ExpertKey(1, 3), ExpertKey(0, 0)]) >= 2
    assert ExpertKey(0, 3) not in store.residents()


def test_a_pinned_expert_that_is_not_there_is_asked_for(make_store: MakeStore) -> None:
    store = make_store(4)
    store.pin([ExpertKey(0, 3)])
    use(store, 0, 3)
    assert store.statistics().loaded_bytes == 192


def test_a_leased_expert_is_not_evicted(make_store: MakeStore) -> None:
    store = make_store(4)
    with store.lease(one_row_each(0, [3])) as lease:
        for _, weights in lease:
            assert store.evict([ExpertKey(0, 3)]) == 0
            assert torch.equal(weights["gate_up"], expected(0, 3))


def test_a_budget_changes_while_leases_are_open(make_store: MakeStore) -> None:
    store = make_store(12)
    slot_bytes = store.catalog.layout(0).slot_bytes
    with store.lease(one_row_each(0, range(6))) as lease:
        for seen, (key, weights) in enumerate(lease):
            if seen == 0:
                store.resize(host_bytes=2 * slot_bytes)
            assert torch.equal(weights["gate_up"], expected(0, key.expert))
        assert store.tiers()["host"].num_slots == 6
    assert store.tiers()["host"].num_slots == 2
    use(store, 1, *range(8))
    store.resize(host_bytes=9 * slot_bytes)
    use(store, 0, *range(8))
    assert store.tiers()["host"].num_resident == 9
    with pytest.raises(BudgetError, match="give at least"):
        store.resize(host_bytes=1)


def test_a_budget_beyond_the_addresses_that_could_be_reserved_is_refused(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = mmap.mmap
    slot_bytes = 4096

    def reserve(file: int, nbytes: int, **options: Any) -> mmap.mmap:
        if nbytes > 3 * slot_bytes and options.get("flags", 0) & NORESERVE:
            raise OSError(12, "Cannot allocate memory")
        return real(file, nbytes, **options)

    with monkeypatch.context() as patch:
        patch.setattr(mmap, "mmap", reserve)
        patch.setattr("expert_store.io.reader.SCRATCH_BYTES", 2 * slot_bytes)
        store = make_store(3)
    with pytest.raises(BudgetError, match="only 3 slots could be reserved"):
        store.resize(host_bytes=4 * slot_bytes)
    use(store, 0, *range(8))


def test_prefetches_are_counted_as_used_late_or_wasted(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(4, num_readers=2)
    assert store.prefetch([ExpertKey(0, 1)]) == 1
    assert store.prefetch([ExpertKey(0, 1)]) == 0
    while not store.residents():
        threading.Event().wait(0.001)
    use(store, 0, 1)
    use(store, 0, 1)
    reads = GatedReads(monkeypatch)
    assert store.prefetch([ExpertKey(0, 2)]) == 1
    reads.wait_until_started()
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(use, store, 0, 2)
        while sum(lookups(store).values()) < 3:
            threading.Event().wait(0.001)
        reads.is_open.set()
        late.result(timeout=30)
    assert store.prefetch([ExpertKey(0, 3)]) == 1
    use(store, 1, *range(8))
    use(store, 0, *range(4, 8))
    assert dict(store.statistics().prefetches) == {"used": 1, "late": 1, "wasted": 1}


def test_a_prefetch_does_not_evict_a_resident_expert_of_the_same_prediction(make_store: MakeStore) -> None:
    store = make_store(2, policy="lru")
    use(store, 0, 1)
    use(store, 0, 2)
    assert store.prefetch([ExpertKey(0, 3), ExpertKey(0, 1)]) == 1  # expert 1 is the oldest
    assert store.residents().keys() <= {ExpertKey(0, 1), ExpertKey(0, 3)}
    use(store, 0, 1)
    assert lookups(store) == {"host": 1, "disk": 2}


def test_nothing_is_read_ahead_while_demands_wait_or_every_slot_is_in_use(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(4, num_readers=1)
    with store.lease(one_row_each(0, [0, 1])) as first, store.lease(one_row_each(1, [0, 1])) as second:
        assert len([*first, *second]) == 4
        assert store.prefetch([ExpertKey(0, 5)]) == 0
    reads = GatedReads(monkeypatch)
    with store.lease(one_row_each(1, [2, 3])):
        reads.wait_until_started()
        assert store.prefetch([ExpertKey(0, 5)]) == 0
        reads.is_open.set()


def test_more_than_the_disk_takes_at_once_is_preloaded_bit_by_bit(make_store: MakeStore) -> None:
    """At most as many experts are preloaded as there are slots beside the pinned ones."""
    store = make_store(6, num_readers=2)
    store.pin([ExpertKey(1, 0)])
    assert store.preload([ExpertKey(0, expert) for expert in range(8)], timeout_seconds=30) == 5
    wait_until_idle(store)
    assert store.residents().keys() == {ExpertKey(1, 0), *(ExpertKey(0, expert) for expert in range(5))}
    assert store.preload([ExpertKey(0, 1), ExpertKey(1, 0)], timeout_seconds=30) == 0


def test_a_preload_ends_in_time_and_evicts_nothing_in_use(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(4, num_readers=2)
    with store.lease(one_row_each(0, [0, 1])) as first, store.lease(one_row_each(1, [2, 3])) as second:
        assert len([*first, *second]) == 4
        assert store.preload([ExpertKey(1, 0)], timeout_seconds=30) == 0
    reads = GatedReads(monkeypatch)
    assert store.preload([ExpertKey(1, expert) for expert in range(4)], timeout_seconds=0) == 2
    reads.is_open.set()


def test_closing_the_store_ends_a_preload(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(4, num_readers=2)
    reads = GatedReads(monkeypatch)
    with ThreadPoolExecutor(2) as pool:
        preloading = pool.submit(store.preload, [ExpertKey(1, expert) for expert in range(4)], 30)
        reads.wait_until_started()
        closing = pool.submit(store.close)
        reads.is_open.set()
        closing.result(timeout=30)
        assert preloading.exception(timeout=30) is None or isinstance(preloading.exception(), StoreClosedError)
    assert store.preload([ExpertKey(0, 7)], timeout_seconds=30) == 0


def test_pin_and_unpin_return_how_many_experts_changed(make_store: MakeStore) -> None:
    store = make_store(4)
    assert store.pin([ExpertKey(0, 1), ExpertKey(0, 2)]) == 2
    assert store.pin([ExpertKey(0, 1)]) == 0
    assert store.pinned == {ExpertKey(0, 1), ExpertKey(0, 2)}
    assert store.unpin([ExpertKey(0, 1), ExpertKey(0, 5)]) == 1
    assert store.pinned == {ExpertKey(0, 2)}


def test_a_lease_lists_the_experts_that_were_missing(make_store: MakeStore) -> None:
    store = make_store(4)
    use(store, 0, 1)
    with store.lease(one_row_each(0, [1, 2, 3])) as lease:
        assert sorted(key.expert for key, _ in lease) == [1, 2, 3]
    assert sorted(lease.missed) == [ExpertKey(0, 2), ExpertKey(0, 3)]
    assert store.catalog.read_bytes(ExpertKey(0, 2)) == 192


def test_the_optimum_of_the_recent_window_is_a_bound(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expert_store.routing_log.recent_window.WINDOW_LOOKUPS", 40)
    store = make_store(5)
    assert store.hit_ratios() is None
    rng = random.Random(0)
    for number in range(100):
        use(store, number % 2, *rng.sample(range(8), 2))
        ratios = store.hit_ratios()
        assert ratios is not None
        assert ratios.lookups <= 40
        assert 0 <= ratios.realised <= ratios.optimal <= 1
    assert ratios.realised < ratios.optimal


def test_the_optimum_is_found_again_only_after_a_look_up_or_with_other_slots(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots, find = list[int](), Window.optimal_hits
    monkeypatch.setattr(Window, "optimal_hits", lambda window, number: slots.append(number) or find(window, number))
    store = make_store(6)
    use(store, 0, 1)
    assert store.hit_ratios() == store.hit_ratios()
    assert slots == [6]
    use(store, 0, 2)
    store.hit_ratios()
    assert slots == [6, 6]
    store.resize(host_bytes=least_bytes(store.catalog, 2))
    use(store, 0, 1)
    store.hit_ratios()
    assert len(slots) == 3
    assert slots[2] < 6


def test_the_optimum_is_a_bound_while_slots_of_a_larger_budget_are_in_use(make_store: MakeStore) -> None:
    store = make_store(6)
    with store.lease(one_row_each(0, range(3))) as lease:
        list(lease)
        store.resize(host_bytes=least_bytes(store.catalog, 2))
        for _ in range(2):
            use(store, 0, 1)
    ratios = store.hit_ratios()
    assert ratios is not None
    assert ratios.realised <= ratios.optimal <= 1


def test_a_wide_lease_leaves_other_layers_their_slots(make_store: MakeStore) -> None:
    store = make_store(6)
    use(store, 0, 1, 2, 3)
    use(store, 1, *range(8))
    use(store, 0, 1, 2, 3)
    assert lookups(store) == {"host": 3, "disk": 11}


@pytest.mark.slow
def test_a_store_that_is_forgotten_stops_its_threads(tmp_path: Path) -> None:
    def readers() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name.startswith("expert-reader")]

    before = len(readers())
    store = ExpertStore(make_catalog(tmp_path), 4096 * 4)
    use(store, 0, 1)
    assert len(readers()) > before
    del store
    gc.collect()
    assert len(readers()) == before


def test_an_unknown_policy_is_named(make_store: MakeStore) -> None:
    with pytest.raises(ValueError, match="'fifo' is not a cache policy; choose one of lru, "):
        make_store(4, policy="fifo")
