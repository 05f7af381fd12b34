"""The bookkeeping of slots, without files or threads."""

from __future__ import annotations

import pytest

from expert_store import ExpertKey
from expert_store.entry import Entry, EntryState
from expert_store.policies import LruPolicy
from expert_store.tier import Tier


def key(expert: int) -> ExpertKey:
    return ExpertKey(0, expert)


def load(tier: Tier, expert: int) -> Entry:
    """Load an expert and keep it leased."""
    entry = tier.reserve(key(expert))
    assert entry is not None
    tier.finish_load(entry)
    tier.check_integrity()
    return entry


def test_the_least_recently_used_is_evicted_first() -> None:
    tier = Tier(2, LruPolicy(2))
    for expert in (0, 1):
        tier.release(load(tier, expert))
    touched = tier.lease(key(0))
    assert touched is not None
    tier.release(touched)
    tier.release(load(tier, 2))
    assert set(tier.resident) == {key(0), key(2)}
    assert tier.evictions == 1


def test_a_leased_slot_survives_eviction_pressure() -> None:
    tier = Tier(2, LruPolicy(2))
    load(tier, 0)
    for expert in range(1, 9):
        tier.release(load(tier, expert))
    assert key(0) in set(tier.resident)


def test_no_slot_is_found_while_all_are_leased() -> None:
    tier = Tier(1, LruPolicy(2))
    entry = load(tier, 0)
    assert tier.reserve(key(1)) is None
    tier.release(entry)
    assert tier.reserve(key(1)) is not None


def test_a_slot_that_is_being_read_is_not_taken() -> None:
    tier = Tier(1, LruPolicy(2))
    entry = tier.reserve(key(0))
    assert entry is not None
    tier.release(entry)
    assert tier.reserve(key(1)) is None
    tier.finish_load(entry)
    assert tier.reserve(key(1)) is not None


def test_waiters_share_one_entry() -> None:
    tier = Tier(2, LruPolicy(2))
    first = tier.reserve(key(0))
    assert tier.lease(key(0)) is first


def test_a_failed_slot_returns_when_the_last_waiter_has_gone() -> None:
    tier = Tier(1, LruPolicy(2))
    entry = tier.reserve(key(0))
    assert entry is not None
    tier.lease(key(0))
    tier.finish_load(entry, OSError("broken"))
    assert entry.state is EntryState.FAILED
    assert tier.lease(key(0)) is None
    tier.release(entry)
    assert tier.reserve(key(1)) is None
    tier.release(entry)
    tier.check_integrity()
    assert tier.reserve(key(1)) is not None


def test_double_release_is_an_error() -> None:
    tier = Tier(1, LruPolicy(2))
    entry = load(tier, 0)
    tier.release(entry)
    with pytest.raises(ValueError, match="expert 0 of layer 0 was released more often than leased"):
        tier.release(entry)


def test_a_pinned_expert_survives_eviction_pressure() -> None:
    tier = Tier(2, LruPolicy(2))
    tier.pin(key(0))
    for expert in range(9):
        tier.release(load(tier, expert))
    assert key(0) in set(tier.resident)
    assert not tier.evict(key(0))
    tier.unpin(key(0))
    assert tier.evict(key(0))
    tier.check_integrity()


def test_pinning_what_is_pinned_and_unpinning_what_is_not_change_nothing() -> None:
    tier = Tier(2, LruPolicy(2))
    tier.release(load(tier, 0))
    tier.unpin(key(0))
    tier.pin(key(0))
    tier.pin(key(0))
    tier.unpin(key(0))
    tier.unpin(key(0))
    tier.release(load(tier, 1))
    tier.release(load(tier, 2))
    assert set(tier.resident) == {key(1), key(2)}


def test_a_smaller_tier_evicts_what_the_policy_chooses() -> None:
    retired: list[int] = []
    tier = Tier(4, LruPolicy(4), retired.append)
    for expert in range(4):
        tier.release(load(tier, expert))
    tier.resize(2)
    tier.check_integrity()
    assert set(tier.resident) == {key(2), key(3)}
    assert len(retired) == 2


def test_leased_slots_of_a_smaller_tier_are_retired_when_they_are_released() -> None:
    retired: list[int] = []
    tier = Tier(3, LruPolicy(3), retired.append)
    entries = [load(tier, expert) for expert in range(3)]
    tier.resize(1)
    assert (tier.excess, retired) == (2, [])
    tier.release(entries[1])
    assert retired == [entries[1].slot]
    tier.release(entries[0])
    assert sorted(retired) == sorted([entries[0].slot, entries[1].slot])
    tier.check_integrity()
    assert set(tier.resident) == {key(2)}


def test_a_read_under_way_leaves_a_smaller_tier_once_it_has_ended() -> None:
    tier = Tier(2, LruPolicy(2))
    first, second = tier.reserve(key(0)), tier.reserve(key(1))
    assert first is not None
    assert second is not None
    tier.release(first)
    tier.release(second)
    tier.resize(1)
    assert tier.excess == 1
    tier.finish_load(first)
    tier.finish_load(second)
    tier.check_integrity()
    assert tier.excess == 0
    assert len(list(tier.resident)) == 1


def test_a_larger_tier_takes_retired_slots_again_and_then_new_ones() -> None:
    revived: list[int] = []
    tier = Tier(2, LruPolicy(2), on_revive=revived.append)
    tier.resize(1)
    tier.resize(4)
    tier.check_integrity()
    assert revived[1:] == [2, 3]
    for expert in range(4):
        load(tier, expert)
    assert tier.reserve(key(9)) is None


def test_redundant_experts_are_evicted_before_all_others() -> None:
    tier = Tier(3, LruPolicy(3))
    for expert in range(3):
        tier.release(load(tier, expert))
    tier.mark_redundant(key(2), is_redundant=True)
    tier.release(load(tier, 3))
    assert set(tier.resident) == {key(0), key(1), key(3)}
    tier.mark_redundant(key(3), is_redundant=True)
    tier.mark_redundant(key(3), is_redundant=False)
    tier.release(load(tier, 4))
    assert set(tier.resident) == {key(1), key(3), key(4)}
    tier.check_integrity()


def test_a_cancelled_load_frees_its_slot() -> None:
    tier = Tier(1, LruPolicy(1))
    entry = tier.reserve(key(0))
    assert entry is not None
    tier.release(entry)
    tier.cancel_load(entry)
    tier.check_integrity()
    assert tier.reserve(key(1)) is not None


def test_a_prefetched_expert_evicted_without_use_counts_as_wasted() -> None:
    tier = Tier(1, LruPolicy(1))
    entry = load(tier, 0)
    entry.is_prefetched = True
    tier.release(entry)
    tier.release(load(tier, 1))
    tier.release(load(tier, 2))
    assert (tier.evictions, tier.wasted) == (2, 1)
