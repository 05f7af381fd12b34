"""The store over real files: leases, single-flight loads, waves, failures, budgets."""

from __future__ import annotations

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
from tests.expert_store.files import expected, make_catalog

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
    """Lease experts, check their weights, and tell in which order they came."""
    order = []
    with store.lease(layer, dict.fromkeys(experts, 1)) as lease:
        for expert, weights in lease:
            assert torch.equal(weights["gate_up"], expected(layer, expert))
            order.append(expert)
    assert sorted(order) == sorted(experts)
    return order


def lookups(store: ExpertStore) -> dict[str, int]:
    counts = {"host": 0, "disk": 0}
    for (tier, _), count in store.statistics().lookups.items():
        counts[tier] += count
    return counts


class GatedReads:
    """Holds every read of data back until it is opened, and counts them; headers pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: OSError | None = None):
        self.count = 0
        self.error = error
        self.is_open = threading.Event()
        self._started = threading.Semaphore(0)
        self._read = os.preadv
        monkeypatch.setattr(os, "preadv", self)

    def wait_until_started(self) -> None:
        assert self._started.acquire(timeout=30)

    def __call__(self, file: int, buffers: list[memoryview], offset: int) -> int:
        self.count += 1
        self._started.release()
        assert self.is_open.wait(timeout=30)
        if self.error is not None:
            raise self.error
        return self._read(file, buffers, offset)


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


def test_an_expert_that_is_there_is_not_pushed_out_by_its_own_layer(make_store: MakeStore) -> None:
    """All hits are taken before any victim is chosen."""
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
    with store.lease(0, {6: 1}):
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
    with store.lease(1, {2: 5, 3: 1}, "prefill") as lease:
        for _ in lease:
            pass
    tokens = store.statistics().tokens
    assert tokens[1, 2] == 5
    assert tokens[1, 3] == 1
    assert tokens.sum() == 6


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
