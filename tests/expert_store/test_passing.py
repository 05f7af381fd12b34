"""Leases of passes over prompts, which take few slots from what others use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from expert_store import ExpertKey, ExpertStore
from tests.expert_store.gated_reads import GatedReads
from tests.expert_store.lease_rows import one_row_each
from tests.expert_store.records import LAYOUT, make_records
from tests.expert_store.waiting import wait_until_idle

SLOTS = 8


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ExpertStore]:
    store = ExpertStore(make_records(tmp_path), SLOTS * LAYOUT.slot_bytes)
    yield store
    store.close()
    store.check_integrity()


def use(store: ExpertStore, layer: int, *experts: int) -> None:
    with store.lease(one_row_each(layer, experts)) as lease:
        assert len(list(lease)) == len(experts)


def pass_over(store: ExpertStore, layer: int, *experts: int) -> None:
    with store.lease_passing(one_row_each(layer, experts)) as lease:
        assert lease.wait(10.0)
        assert len(list(lease)) == len(experts)


def resident(store: ExpertStore, layer: int) -> list[int]:
    absent = set(store.absent())
    return [expert for expert in range(8) if ExpertKey(layer, expert) not in absent]


def test_a_pass_takes_the_slots_of_what_it_brought_before_others(store: ExpertStore) -> None:
    use(store, 0, 0, 1, 2)
    pass_over(store, 1, 0, 1, 2, 3, 4)
    pass_over(store, 0, 3, 4, 5, 6, 7)
    assert resident(store, 0) == [*range(8)]


def test_a_pass_that_wants_no_expert_waits_for_none(store: ExpertStore) -> None:
    pass_over(store, 1)


def test_what_a_pass_brought_and_others_use_stays(store: ExpertStore) -> None:
    use(store, 0, 0, 1, 2)
    pass_over(store, 1, 0, 1, 2, 3, 4)
    use(store, 1, 3)
    pass_over(store, 0, 3, 4, 5, 6)
    assert resident(store, 1) == [3]


def test_what_is_kept_for_decoding_stays(store: ExpertStore) -> None:
    use(store, 0, 0, 1, 2)
    pass_over(store, 1, 0, 1, 2, 3, 4)
    store.keep([ExpertKey(1, 2), ExpertKey(1, 7)])
    pass_over(store, 0, 3, 4, 5, 6)
    assert resident(store, 1) == [2]


def test_a_wait_ends_when_its_time_is_over(store: ExpertStore, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = GatedReads(monkeypatch)
    with store.lease_passing(one_row_each(0, [0, 1])) as lease:
        assert not lease.wait(0.0)
        reads.is_open.set()
        assert lease.wait(10.0)


def test_a_lease_finds_what_was_read_ahead_of_it(store: ExpertStore) -> None:
    with store.read_ahead([ExpertKey(1, 0), ExpertKey(1, 1)]):
        wait_until_idle(store)
        with store.lease_passing(one_row_each(1, [0, 1, 2])) as lease:
            assert list(lease.missed) == [ExpertKey(1, 2)]
            assert lease.wait(10.0)


def test_what_is_read_ahead_is_not_evicted_meanwhile(store: ExpertStore) -> None:
    with store.read_ahead([ExpertKey(1, 0), ExpertKey(1, 1)]):
        wait_until_idle(store)
        use(store, 0, 0, 1, 2, 3)
        use(store, 0, 4, 5, 6, 7)
        assert resident(store, 1) == [0, 1]
