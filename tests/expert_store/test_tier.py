"""The bookkeeping of slots, without files or threads."""

from __future__ import annotations

import pytest

from expert_store import ExpertKey
from expert_store.policies import LruPolicy
from expert_store.tier import Entry, State, Tier


def key(expert: int) -> ExpertKey:
    return ExpertKey(0, expert)


def load(tier: Tier, expert: int) -> Entry:
    """Bring an expert in and keep it leased."""
    entry = tier.reserve(key(expert))
    assert entry is not None
    tier.finish(entry)
    tier.check_integrity()
    return entry


def test_the_least_recently_used_goes_first() -> None:
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
    tier.finish(entry)
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
    tier.finish(entry, OSError("broken"))
    assert entry.state is State.FAILED
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
