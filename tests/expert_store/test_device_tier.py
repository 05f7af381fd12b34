"""Three tiers, device over host over disk, on the emulated device and on one that records its calls."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from expert_store import BudgetError, ExpertCatalog, ExpertKey, ExpertLoadError, ExpertStore, StoreFailedError
from expert_store import lease as lease_module
from expert_store.arena import HostArena
from expert_store.io.cuda_device import CudaDevice
from expert_store.io.device_memory import EmulatedDevice
from expert_store.sources.file import DirectFile
from tests.expert_store.late_device import LateCopy, LateDevice
from tests.expert_store.lease_rows import one_row_each
from tests.expert_store.records import LAYOUT, make_records
from tests.expert_store.waiting import TIMEOUT, wait_until_idle

SLOT = LAYOUT.slot_bytes


@pytest.fixture
def catalog(tmp_path: Path) -> ExpertCatalog:
    return make_records(tmp_path)


@pytest.fixture
def stores(catalog: ExpertCatalog) -> Iterator[Any]:
    made: list[ExpertStore] = []

    def make(device_slots: int, host_slots: int) -> ExpertStore:
        made.append(ExpertStore(catalog, host_slots * SLOT, device_bytes=device_slots * SLOT))
        return made[-1]

    yield make
    for store in made:
        store.close()
        store.check_integrity()


def use(store: ExpertStore, layer: int, *experts: int) -> None:
    with store.lease(one_row_each(layer, experts)) as lease:
        found = {key.expert: int(weights["weight"][0]) for key, weights in lease}
    assert found == {expert: layer * 1000 + expert for expert in experts}


def moved(store: ExpertStore) -> dict[tuple[str, str], int]:
    """Return the number of experts moved each way, once all copies have ended."""
    wait_until_idle(store)
    return {way: load.nbytes // SLOT for way, load in store.statistics().loads.items()}


def test_an_expert_passes_through_the_host_and_is_found_on_the_device(stores: Any) -> None:
    store = stores(2, 4)
    use(store, 0, 1)
    use(store, 0, 1)
    assert store.residents() == {ExpertKey(0, 1): "device"}
    assert moved(store) == {("disk", "host"): 1, ("host", "device"): 1}
    assert dict(store.statistics().lookups) == {("disk", "decode"): 1, ("device", "decode"): 1}


def test_what_leaves_the_device_is_not_copied_down_while_the_host_has_it(stores: Any) -> None:
    store = stores(1, 4)
    use(store, 0, 0)
    use(store, 0, 1)
    use(store, 0, 0)
    assert moved(store) == {("disk", "host"): 2, ("host", "device"): 3}
    assert store.statistics().lookups["host", "decode"] == 1


def test_both_tiers_together_hold_as_many_experts_as_they_have_slots(stores: Any) -> None:
    """The host evicts redundant copies first, and gets experts back that leave the device."""
    store = stores(2, 3)
    for _ in range(3):
        for expert in range(4):
            use(store, 0, expert)
            wait_until_idle(store)
    assert set(store.residents()) == {ExpertKey(0, expert) for expert in range(4)}
    ways = moved(store)
    assert ways["disk", "host"] == 4
    assert ways["device", "host"] < ways["host", "device"] == 12


def test_every_read_is_a_miss_of_the_lease_that_it_was_for(stores: Any) -> None:
    """A waiting expert of a wave may leave the host before its turn comes."""
    store, rng = stores(2, 4), random.Random(0)
    num_missed = num_requested = 0
    for _ in range(40):
        experts = rng.sample(range(6), rng.randint(1, 5))
        with store.lease(one_row_each(0, experts)) as lease:
            for _ in lease:
                pass
        num_missed += len(lease.missed)
        num_requested += len(experts)
        wait_until_idle(store)
    assert store.statistics().lookups["disk", "decode"] == num_missed
    assert sum(store.statistics().lookups.values()) == num_requested
    assert moved(store)["disk", "host"] == num_missed


def test_a_layer_wider_than_the_device_is_served_in_waves(stores: Any) -> None:
    store = stores(1, 2)
    use(store, 0, *range(8))
    use(store, 1, *range(8))
    use(store, 0, *range(8))


def test_a_failed_read_reaches_who_waits_for_the_device(stores: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stores(2, 2)

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(DirectFile, "read", fail)
        with pytest.raises(ExpertLoadError, match=r"expert 3 of layer 0: .*Input/output error"):
            use(store, 0, 3)
    store.check_integrity()
    use(store, 0, 3)


def test_a_failed_copy_reaches_who_waits_and_the_next_lease_tries_again(
    stores: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = stores(2, 2)

    def fail(*_: object) -> None:
        raise RuntimeError("the bus is gone")

    with monkeypatch.context() as patch:
        patch.setattr(LateDevice, "copy", fail)
        with pytest.raises(ExpertLoadError, match="expert 3 of layer 0: the bus is gone"):
            use(store, 0, 3)
    wait_until_idle(store)
    store.check_integrity()
    use(store, 0, 3)


def test_the_table_of_slots_follows_every_move(stores: Any) -> None:
    store = stores(3, 3)
    for expert in (0, 5, 7, 2, 5, 6, 1):
        use(store, 1, expert)
    wait_until_idle(store)
    table = store.slot_table
    on_device = {key for key, tier in store.residents().items() if tier == "device"}
    assert {ExpertKey(*place) for place in np.argwhere(table >= 0).tolist()} == on_device
    pool = store._state.pools[0]
    for key in on_device:
        weights = pool.device_arena.weights(int(table[key.layer, key.expert]))
        assert int(weights["weight"][0]) == key.layer * 1000 + key.expert


def test_the_table_of_slots_forgets_an_expert_that_is_evicted(stores: Any) -> None:
    store = stores(3, 3)
    use(store, 1, 5)
    wait_until_idle(store)
    assert store.slot_table[1, 5] >= 0
    assert store.evict([ExpertKey(1, 5)]) == 1
    assert store.slot_table[1, 5] == -1


def test_a_device_tier_is_rebuilt_between_leases(stores: Any) -> None:
    store = stores(2, 4)
    use(store, 0, 0, 1)
    store.resize(device_bytes=5 * SLOT)
    assert store.tiers()["device"].num_slots == 5
    use(store, 0, *range(8))
    assert store.tiers()["device"].num_resident == 5
    store.resize(device_bytes=SLOT)
    use(store, 0, *range(8))
    assert store.tiers()["device"].slot_bytes == SLOT
    with pytest.raises(BudgetError, match="give at least"):
        store.resize(device_bytes=1)


def test_a_device_without_the_memory_keeps_its_old_size(stores: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stores(2, 4)
    store.pin([ExpertKey(0, 1)])
    allocate = EmulatedDevice.allocate

    def refuse_more(self: EmulatedDevice, nbytes: int) -> torch.Tensor:
        if nbytes > 2 * SLOT:
            raise BudgetError("cannot allocate")
        return allocate(self, nbytes)

    monkeypatch.setattr(EmulatedDevice, "allocate", refuse_more)
    with pytest.raises(BudgetError, match="cannot allocate"):
        store.resize(device_bytes=5 * SLOT)
    assert store.tiers()["device"].num_slots == 2
    assert store.tiers()["device"].budget_bytes == 2 * SLOT
    use(store, 0, *range(8))
    assert store.tiers()["device"].num_pinned == 1


def test_a_rebuild_waits_for_leases(stores: Any) -> None:
    store = stores(2, 4)
    with store.lease(one_row_each(0, [1])) as lease:
        for _, weights in lease:
            rebuild = threading.Thread(target=store.resize, kwargs={"device_bytes": 3 * SLOT})
            rebuild.start()
            rebuild.join(0.05)
            assert rebuild.is_alive()
            assert int(weights["weight"][0]) == 1
    rebuild.join(TIMEOUT)
    assert not rebuild.is_alive()
    assert store.tiers()["device"].num_slots == 3


class Resize:
    """A resize of the device tier in a thread of its own, which waits for a lease."""

    def __init__(self, store: ExpertStore, num_slots: int):
        self.thread = threading.Thread(target=store.resize, kwargs={"device_bytes": num_slots * SLOT})
        self.thread.start()
        while store._state.next_device_slots is None:
            threading.Event().wait(0.001)

    def join(self) -> None:
        self.thread.join(TIMEOUT)
        assert not self.thread.is_alive()


def test_leases_that_begin_while_a_rebuild_waits_go_after_it(stores: Any) -> None:
    """Otherwise leases that overlap would keep the tier in use for ever."""
    store = stores(2, 4)
    num_slots: list[int] = []

    def lease() -> None:
        with store.lease(one_row_each(0, [2])) as later:
            list(later)
            num_slots.append(store.tiers()["device"].num_slots)

    with store.lease(one_row_each(0, [1])) as first:
        list(first)
        resize, later = Resize(store, 3), threading.Thread(target=lease)
        later.start()
        assert store.prefetch([ExpertKey(0, 3)]) == 0
    resize.join()
    later.join(TIMEOUT)
    assert num_slots == [3]


def test_a_lease_of_a_thread_that_holds_another_does_not_wait_for_a_rebuild_for_ever(
    stores: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "RESIZE_SECONDS", 0.05)
    store = stores(2, 4)
    with store.lease(one_row_each(0, [1])) as first:
        list(first)
        resize = Resize(store, 3)
        use(store, 1, 5)
    resize.join()
    assert store.tiers()["device"].num_slots == 3


def test_pins_that_come_while_a_rebuild_waits_have_to_fit_in_the_new_size(stores: Any) -> None:
    store = stores(4, 4)
    with store.lease(one_row_each(0, [1])) as lease:
        list(lease)
        resize = Resize(store, 2)
        store.pin([ExpertKey(0, 6)])
        with pytest.raises(BudgetError, match="2 pinned experts leave fewer than 1 of 2 slots"):
            store.pin([ExpertKey(0, 7)])
    resize.join()
    use(store, 0, *range(8))
    assert store.tiers()["device"].num_pinned == 1


def test_rebuilds_wait_for_each_other(stores: Any) -> None:
    store = stores(2, 4)
    with store.lease(one_row_each(0, [1])) as lease:
        list(lease)
        first = Resize(store, 3)
        second = threading.Thread(target=store.resize, kwargs={"device_bytes": 5 * SLOT})
        second.start()
    first.join()
    second.join(TIMEOUT)
    device = store.tiers()["device"]
    assert (device.num_slots, device.budget_bytes) == (5, 5 * SLOT)


def test_memory_that_others_took_meanwhile_leaves_a_smaller_tier(stores: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stores(8, 4)
    store.pin([ExpertKey(0, 1)])
    allocate = EmulatedDevice.allocate

    def refuse_more(self: EmulatedDevice, nbytes: int) -> torch.Tensor:
        if nbytes > 3 * SLOT:
            raise BudgetError("cannot allocate")
        return allocate(self, nbytes)

    monkeypatch.setattr(EmulatedDevice, "allocate", refuse_more)
    with pytest.raises(BudgetError, match="cannot allocate"):
        store.resize(device_bytes=9 * SLOT)
    assert store.tiers()["device"].num_slots == 2
    use(store, 0, *range(8))


def test_a_device_without_any_memory_ends_all_waiting(stores: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stores(2, 4)

    def refuse(self: EmulatedDevice, nbytes: int) -> torch.Tensor:
        raise BudgetError("cannot allocate")

    with monkeypatch.context() as patch:
        patch.setattr(EmulatedDevice, "allocate", refuse)
        with pytest.raises(BudgetError, match="cannot allocate"):
            store.resize(device_bytes=3 * SLOT)
    assert store.health == "failing"
    with pytest.raises(StoreFailedError, match="the memory of the device tier is gone: cannot allocate"):
        use(store, 0, 1)


def test_a_store_without_a_device_tier_cannot_get_one(catalog: ExpertCatalog) -> None:
    store = ExpertStore(catalog, 4 * SLOT)
    with pytest.raises(BudgetError, match="without a device tier"):
        store.resize(device_bytes=SLOT)
    store.close()


def test_pins_keep_experts_on_the_device_through_a_rebuild(stores: Any) -> None:
    store = stores(3, 3)
    store.pin([ExpertKey(0, 6), ExpertKey(1, 2)])
    for layer in (0, 1):
        for expert in range(8):
            use(store, layer, expert)
    assert store.residents()[ExpertKey(0, 6)] == store.residents()[ExpertKey(1, 2)] == "device"
    store.resize(device_bytes=4 * SLOT)
    use(store, 0, 6)
    assert store.tiers()["device"].num_pinned == 2
    with pytest.raises(BudgetError, match="2 pinned experts leave fewer than 1 of 2 slots"):
        store.resize(device_bytes=2 * SLOT)
    assert store.evict([ExpertKey(0, 6)]) == 0
    assert store.residents()[ExpertKey(0, 6)] == "device"


class Recording(EmulatedDevice):
    """Records its calls in order; its events are numbers."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self._count = 0

    def allocate(self, nbytes: int) -> torch.Tensor:
        self.log.append(("allocate", nbytes))
        return super().allocate(nbytes)

    def give_back(self) -> None:
        self.log.append(("give back",))

    def copy(self, source: torch.Tensor, target: torch.Tensor, after: Any) -> Any:
        super().copy(source, target, after)
        self._count += 1
        self.log.append(("copy", self._count, after))
        return self._count

    def wait(self, event: Any) -> None:
        self.log.append(("wait", event))

    def order(self, event: Any) -> None:
        self.log.append(("order", event))

    def mark(self) -> Any:
        self._count += 1
        self.log.append(("mark", self._count))
        return self._count

    def pin(self, arena: HostArena, slot: int) -> None:
        assert int(arena.weights(slot)["weight"][0]) >= 0
        self.log.append(("pin", slot))

    def unpin(self, arena: HostArena, slot: int) -> None:
        self.log.append(("unpin", slot))


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> Recording:
    recording = Recording()
    monkeypatch.setattr("expert_store.resources.open_device", lambda _: recording)
    return recording


def test_events_fence_a_slot_before_compute_and_before_its_next_copy(stores: Any, recording: Recording) -> None:
    """Compute is ordered after the copy of what it reads; a copy into a slot is ordered after its last use."""
    store = stores(1, 4)
    use(store, 0, 3)
    wait_until_idle(store)
    use(store, 0, 4)
    wait_until_idle(store)
    kinds = [entry[0] for entry in recording.log if entry[0] in {"copy", "order", "mark"}]
    assert kinds[:4] == ["mark", "copy", "order", "mark"]
    copies = [entry for entry in recording.log if entry[0] == "copy"]
    marks = [entry[1] for entry in recording.log if entry[0] == "mark"]
    orders = [entry[1] for entry in recording.log if entry[0] == "order"]
    assert copies[0][2] == marks[0]  # what was queued before the memory was allocated
    assert copies[1][2] == marks[1] or copies[2][2] == marks[1]
    assert orders[0] == copies[0][1]


def test_a_write_back_leaves_the_slot_before_the_next_expert_enters(stores: Any, recording: Recording) -> None:
    store = stores(1, 1)
    for expert in (0, 1, 2, 0):
        use(store, 0, expert)
        wait_until_idle(store)
    store.check_integrity()


def test_host_slots_are_pinned_once_they_are_filled_and_unpinned_when_retired(
    stores: Any, recording: Recording
) -> None:
    store = stores(1, 3)
    for expert in range(3):
        use(store, 0, expert)
    wait_until_idle(store)
    assert {entry[1] for entry in recording.log if entry[0] == "pin"} == {0, 1, 2}
    store.resize(host_bytes=SLOT)
    assert len({entry[1] for entry in recording.log if entry[0] == "unpin"}) == 2


def test_a_host_slot_that_a_write_back_fills_first_is_pinned(stores: Any, recording: Recording) -> None:
    store = stores(2, 1)
    for expert in (0, 1):  # only the device has expert 0 then
        use(store, 0, expert)
        wait_until_idle(store)
    store.resize(host_bytes=3 * SLOT)
    use(store, 0, 2)
    assert moved(store)["device", "host"] == 1
    assert {entry[1] for entry in recording.log if entry[0] == "pin"} == {0, 1, 2}


def test_a_rebuild_gives_memory_back_before_it_allocates(stores: Any, recording: Recording) -> None:
    """Else the device's free memory is told without what the allocator keeps."""
    store = stores(4, 3)
    recording.log.clear()
    store.resize(device_bytes=2 * SLOT)
    assert recording.log[:2] == [("give back",), ("allocate", 2 * SLOT)]


def test_an_expert_on_its_way_down_was_not_on_the_disk(stores: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store, begun = stores(2, 1), threading.Event()
    copy = LateDevice.copy
    for expert in (0, 1):
        use(store, 0, expert)
        wait_until_idle(store)
    store.resize(host_bytes=3 * SLOT)

    def copy_later(*arguments: Any) -> LateCopy:
        assert begun.wait(TIMEOUT)
        return copy(*arguments)

    monkeypatch.setattr(LateDevice, "copy", copy_later)
    with store.lease(one_row_each(0, [2])), store.lease(one_row_each(0, [0])) as lease:
        begun.set()
        for _ in lease:
            pass
    assert not lease.missed


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_device_serves_what_the_disk_has(catalog: ExpertCatalog) -> None:
    store = ExpertStore(catalog, 4 * SLOT, device_bytes=2 * SLOT, device=torch.device("cuda", 0))
    for layer in (0, 1, 0):
        use(store, layer, *range(8))
    assert isinstance(store._state._resources.device, CudaDevice)
    store.resize(host_bytes=2 * SLOT, device_bytes=3 * SLOT)
    for layer in (0, 1, 0):
        use(store, layer, *range(8))
    wait_until_idle(store)
    store.check_integrity()
    store.close()


@pytest.mark.parametrize(
    ("num_slots", "pinned", "layers", "expected"),
    [
        (16, (), (0, 1), True),
        (15, (), (0, 1), False),
        (8, ((0, 7),), (0,), True),
        (8, ((1, 2),), (0,), False),  # of another layer, so it leaves a slot too few
    ],
)
def test_layers_are_held_at_once_if_there_is_a_slot_for_each_expert(
    stores: Any, num_slots: int, pinned: tuple[tuple[int, int], ...], layers: tuple[int, ...], expected: bool
) -> None:
    store = stores(num_slots, 16)
    store.pin([ExpertKey(*place) for place in pinned])
    assert store.holds_at_once(layers) == expected


def test_experts_in_memory_are_prefetched_while_the_disk_is_busy(stores: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stores(2, 4)
    use(store, 0, 1, 2)
    use(store, 0, 3, 4)
    wait_until_idle(store)
    monkeypatch.setattr(store._state.reader, "takes", lambda _: False)
    assert store.prefetch([ExpertKey(0, 5), ExpertKey(0, 1)]) == 1
    assert moved(store)["host", "device"] == 5


def test_whoever_waits_for_slots_of_a_device_that_has_failed_gets_its_error(
    stores: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = stores(2, 2)

    def mark(_: LateDevice) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(LateDevice, "mark", mark)
    with pytest.raises(RuntimeError, match="unspecified launch failure"):
        use(store, 0, 1, 2)  # and keeps both slots
    with pytest.raises(StoreFailedError, match="the device of the experts has failed: CUDA error"):
        use(store, 0, 3)
