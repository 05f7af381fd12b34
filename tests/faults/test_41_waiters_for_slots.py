"""Every slot is leased and more are needed: leases get them in the order in which they came, and one may leave."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from expert_store import BudgetError, ExpertKey, ExpertStore, StoreClosedError
from expert_store.sources.file import DirectFile
from tests.expert_store.lease_rows import one_row_each
from tests.expert_store.records import LAYOUT, make_records

NUM_SLOTS, NUM_EXPERTS, TIMEOUT = 41, 64, 30
SLOT = LAYOUT.slot_bytes


class Waiter:
    """A thread that leases one expert, and counts as waiting once its lease has no slot."""

    def __init__(self, store: ExpertStore, *experts: int):
        self.error: Exception | None = None
        self.lease = store.lease(one_row_each(1, experts))
        self.thread = threading.Thread(target=self._use, daemon=True)
        self.thread.start()

    def _use(self) -> None:
        try:
            with self.lease as lease:
                list(lease)
        except StoreClosedError as error:
            self.error = error

    def wait_until_waiting(self, store: ExpertStore) -> None:
        queue = store._state.pools[0].queue
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            with store._state.lock:
                if queue._is_waiting.get(self.lease):
                    return
            threading.Event().wait(0.001)
        pytest.fail("the lease does not wait")

    def join(self) -> None:
        self.thread.join(TIMEOUT)
        assert not self.thread.is_alive()


@pytest.fixture(params=[0, NUM_SLOTS], ids=["host", "device"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ExpertStore]:
    """A store with the same number of slots in its fastest tier, whichever that is."""
    catalog = make_records(tmp_path, num_experts=NUM_EXPERTS)
    store = ExpertStore(catalog, (NUM_SLOTS + 3) * SLOT, device_bytes=request.param * SLOT, num_readers=1)
    if not request.param:
        store.resize(host_bytes=NUM_SLOTS * SLOT)
    yield store
    store.close()
    store.check_integrity()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The experts of layer 1 in the order in which their reads began."""
    order: list[int] = []
    read = DirectFile.read

    def note_and_read(file: DirectFile, pieces: Sequence[object], bounce: object) -> None:
        order.append(pieces[0].offset // SLOT)  # type: ignore[attr-defined]
        read(file, pieces, bounce)  # type: ignore[arg-type]

    monkeypatch.setattr(DirectFile, "read", note_and_read)
    return order


@contextmanager
def all_slots(store: ExpertStore) -> Iterator[None]:
    """Lease as many experts as there are slots, one by one, since a wide lease would leave slots to others."""
    with ExitStack() as stack:
        for expert in range(NUM_SLOTS):
            list(stack.enter_context(store.lease(one_row_each(0, [expert]))))
        yield


def wait_one_by_one(store: ExpertStore, experts: Sequence[int]) -> list[Waiter]:
    waiters = []
    for expert in experts:
        waiters.append(Waiter(store, expert))
        waiters[-1].wait_until_waiting(store)
    return waiters


def test_one_more_than_there_are_slots_is_served_in_order(store: ExpertStore, reads: list[int]) -> None:
    wanted = list(range(20))[::-1]
    with all_slots(store):
        reads.clear()
        waiters = wait_one_by_one(store, wanted)
        assert not reads
    for waiter in waiters:
        waiter.join()
    assert reads == wanted


def test_a_new_lease_does_not_overtake(store: ExpertStore, reads: list[int]) -> None:
    """The first needs two slots, and one of them is free before the other."""
    with all_slots(store):
        reads.clear()
        first = Waiter(store, 1, 2)
        first.wait_until_waiting(store)
        second = Waiter(store, 3)
        second.wait_until_waiting(store)
    first.join()
    second.join()
    assert reads == [1, 2, 3]


def test_a_lease_that_leaves_lets_the_next_one_through(store: ExpertStore, reads: list[int]) -> None:
    with all_slots(store):
        reads.clear()
        with store.lease(one_row_each(1, [5])):  # it has its place, and ends before it gets anything
            later = wait_one_by_one(store, [6, 7])
    for waiter in later:
        waiter.join()
    assert reads == [6, 7]


def test_a_lease_keeps_its_turn_while_it_asks_for_slots(store: ExpertStore) -> None:
    keeps_turn: list[bool] = []
    store.on_starvation(lambda: keeps_turn.append(store._state.pools[0].queue.has_waiters))
    with all_slots(store):
        (waiter,) = wait_one_by_one(store, [6])
    waiter.join()
    assert keeps_turn
    assert all(keeps_turn)


def test_a_lease_that_computes_holds_nobody_up(store: ExpertStore, reads: list[int]) -> None:
    """It has a place in the queue, but its thread does not ask for more yet."""
    with all_slots(store):
        computing = store.lease(one_row_each(1, [5]))
        computing.__enter__()
    later = Waiter(store, 6)
    later.join()
    assert [key.expert for key, _ in computing] == [5]
    computing.__exit__(None, None, None)


def test_neither_prefetches_nor_pins_overtake(store: ExpertStore, reads: list[int]) -> None:
    with all_slots(store):
        reads.clear()
        (waiter,) = wait_one_by_one(store, [6])
        assert store.prefetch([ExpertKey(1, 8), ExpertKey(1, 9)]) == 0
        store.pin([ExpertKey(1, 10)])
        assert not reads
    waiter.join()
    assert reads == [6]


def test_a_closed_store_ends_all_who_wait(store: ExpertStore) -> None:
    with all_slots(store):
        waiters = wait_one_by_one(store, [1, 2, 3])
        store.close()
        for waiter in waiters:
            waiter.join()
            assert isinstance(waiter.error, StoreClosedError)


def test_pins_leave_a_slot_to_those_who_wait(store: ExpertStore) -> None:
    with all_slots(store):
        waiters = wait_one_by_one(store, [1, 2])
        store.pin([ExpertKey(0, expert) for expert in range(NUM_SLOTS - 1)])
        with pytest.raises(BudgetError, match="leave fewer than 1"):
            store.pin([ExpertKey(0, NUM_SLOTS)])
    for waiter in waiters:
        waiter.join()
