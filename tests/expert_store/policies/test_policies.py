"""Replacement policies, each compared with a slow and obvious one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expert_store import ExpertKey
from expert_store.policies import (
    POLICIES,
    STREAM,
    ArcPolicy,
    FairPolicy,
    LfruPolicy,
    LfuPolicy,
    LruPolicy,
    Policy,
    SlruPolicy,
    make_policy,
)
from expert_store.policies.fair import slots_per_layer
from expert_store.policies.lfru import HALF_LIFE
from tests.expert_store.reference_policies import REFERENCES

INNER = tuple(REFERENCES)


def key(expert: int, layer: int = 0) -> ExpertKey:
    return ExpertKey(layer, expert)


def anything(_: ExpertKey) -> bool:
    return True


def victim_of(policy: Policy, incoming: int = 999) -> int | None:
    """Return the expert of layer 0 that would be evicted."""
    found = policy.victim(key(incoming), anything)
    return None if found is None else found.expert


def filled(policy: Policy, *experts: int) -> Policy:
    for expert in experts:
        policy.insert(key(expert))
    return policy


# The next operation, and the number of the key it is done to.
operations = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "ask", "ask", "ask_layer", "lease", "release", "pin", "resize"]),
        st.integers(0, 2),
        st.integers(0, 7),
    ),
    max_size=120,
)


class Lockstep:
    """Two policies that get the same calls and must return the same."""

    def __init__(self, *policies: Policy) -> None:
        self.policies = policies

    def insert(self, key: ExpertKey) -> None:
        for policy in self.policies:
            policy.insert(key)

    def touch(self, key: ExpertKey) -> None:
        for policy in self.policies:
            policy.touch(key)

    def touch_all(self, keys: Sequence[ExpertKey]) -> None:
        first, second = self.policies
        first.touch_all(keys)
        for key in keys:
            second.touch(key)

    def remove(self, key: ExpertKey) -> None:
        for policy in self.policies:
            policy.remove(key)

    def victim(self, incoming: ExpertKey, is_evictable: Callable[[ExpertKey], bool]) -> ExpertKey | None:
        first, second = (policy.victim(incoming, is_evictable) for policy in self.policies)
        assert first == second
        return first

    def resize(self, num_slots: int) -> None:
        for policy in self.policies:
            policy.resize(num_slots)


class Cache:
    """Plays the part of a tier for a policy, and checks every answer."""

    def __init__(self, policy: Policy, num_slots: int) -> None:
        self.policy, self.num_slots = policy, num_slots
        self.resident: set[ExpertKey] = set()
        self.leased: set[ExpertKey] = set()

    def ask(self, key: ExpertKey) -> None:
        if key in self.resident:
            self.policy.touch(key)
            return
        while len(self.resident) >= self.num_slots:
            victim = self.policy.victim(key, lambda candidate: candidate not in self.leased)
            if victim is None:
                assert self.resident <= self.leased
                return
            assert victim in self.resident - self.leased
            self.pin(victim)
        self.resident.add(key)
        self.policy.insert(key)

    def ask_layer(self, key: ExpertKey) -> None:
        self.policy.touch_all(sorted(each for each in self.resident if each.layer == key.layer))

    def lease(self, key: ExpertKey) -> None:
        if key in self.resident:
            self.leased.add(key)

    def release(self, key: ExpertKey) -> None:
        self.leased.discard(key)

    def pin(self, key: ExpertKey) -> None:
        """Pin a key, which removes it from the policy; the next use unpins it."""
        if key in self.resident:
            self.resident.remove(key)
            self.leased.discard(key)
            self.policy.remove(key)

    def resize(self, key: ExpertKey) -> None:
        self.num_slots = 1 + key.layer * 8 + key.expert
        self.policy.resize(self.num_slots)


def drive(policy: Policy, num_slots: int, steps: list[tuple[str, int, int]]) -> None:
    cache = Cache(policy, num_slots)
    for action, layer, expert in steps:
        getattr(cache, action)(key(expert, layer))


@pytest.mark.slow
@pytest.mark.parametrize("policy", INNER)
@given(num_slots=st.integers(1, 16), steps=operations)
def test_a_policy_answers_as_the_obvious_one_does(
    policy: type, num_slots: int, steps: list[tuple[str, int, int]]
) -> None:
    drive(Lockstep(policy(num_slots), REFERENCES[policy](num_slots)), num_slots, steps)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*POLICIES, STREAM])
@given(num_slots=st.integers(1, 24), steps=operations)
def test_within_shares_a_victim_is_resident_and_evictable_and_there_is_one_if_any_is(
    name: str, num_slots: int, steps: list[tuple[str, int, int]]
) -> None:
    drive(make_policy(name, num_slots, dict.fromkeys(range(3), 8)), num_slots, steps)


@pytest.mark.parametrize("policy", INNER)
def test_an_empty_policy_has_no_victim(policy: type) -> None:
    assert victim_of(policy(4)) is None


def test_lru_evicts_the_least_recently_used() -> None:
    policy = filled(LruPolicy(3), 0, 1, 2)
    policy.touch(key(0))
    assert victim_of(policy) == 1


def test_lfu_evicts_the_least_frequently_used_even_if_it_was_used_last() -> None:
    policy = filled(LfuPolicy(2), 0, 1)
    policy.touch(key(0))
    policy.touch(key(0))
    policy.touch(key(1))
    assert victim_of(policy) == 1


def test_slru_protects_keys_used_twice_from_a_scan() -> None:
    policy = filled(SlruPolicy(4), 0)
    policy.touch(key(0))
    filled(policy, 1, 2, 3)
    assert victim_of(policy) == 1


def test_slru_demotes_the_oldest_protected_when_it_shrinks() -> None:
    policy = filled(SlruPolicy(5), 0, 1)
    policy.touch(key(1))
    policy.touch(key(0))
    policy.resize(2)
    policy.remove(key(1))
    filled(policy, 2)
    assert victim_of(policy) == 2


def test_arc_gives_recency_more_slots_when_it_misses_keys_used_once() -> None:
    """Expert 2 was used once, evicted and is used again: the next victim is one of those used twice."""
    policy = filled(ArcPolicy(3), 0, 1)
    policy.touch(key(0))
    policy.touch(key(1))
    filled(policy, 2)
    policy.remove(key(2))
    filled(policy, 3)
    assert victim_of(policy, incoming=4) == 3
    assert victim_of(policy, incoming=2) == 0


def test_lfru_forgets_old_frequency() -> None:
    """Ten uses long ago count less than three just now."""
    policy = filled(LfruPolicy(2), 0)
    for _ in range(10):
        policy.touch(key(0))
    filled(policy, 1)
    assert victim_of(policy) == 1
    for _ in range(int(10 * HALF_LIFE)):
        policy.touch(key(1))
    assert victim_of(policy) == 0


def test_lfru_keeps_no_more_buckets_than_keys_without_evictions() -> None:
    policy = LfruPolicy(2)
    filled(policy, 0, 1)
    for turn in range(10_000):
        policy.touch(key(turn % 2))
    assert len(policy._buckets) <= 2
    assert len(policy._numbers) < 100


def test_lfru_counts_on_when_its_sums_have_grown_beyond_a_float() -> None:
    policy = filled(LfruPolicy(1), 0, 1, 2)
    for _ in range(10_000):  # 1,250 half-lives
        policy.touch(key(1))
    policy.touch_all([key(0)])
    assert victim_of(policy) == 2
    policy.remove(key(2))
    assert victim_of(policy) == 0


def test_lfru_remembers_a_key_that_it_evicted() -> None:
    policy = filled(LfruPolicy(2), 0)
    for _ in range(5):
        policy.touch(key(0))
    policy.remove(key(0))
    filled(policy, 1, 0)
    assert victim_of(policy) == 1


def test_a_layer_at_its_share_evicts_its_own_experts() -> None:
    policy = FairPolicy(4, {0: 8, 1: 8}, LruPolicy)
    for layer in (0, 1):
        for expert in (0, 1):
            policy.insert(key(expert, layer))
    assert policy.victim(key(5, 1), anything) == key(0, 1)
    assert policy.victim(key(5, 0), anything) == key(0, 0)


def test_a_layer_below_its_share_takes_from_one_above() -> None:
    policy = FairPolicy(4, {0: 8, 1: 8}, LruPolicy)
    policy.insert(key(0, 1))
    for expert in range(3):
        policy.insert(key(expert, 0))
    assert policy.victim(key(5, 1), anything) == key(0, 0)


def test_a_token_that_needs_more_than_the_share_borrows_from_the_layer_that_comes_last() -> None:
    policy = FairPolicy(3, {0: 8, 1: 8, 2: 8}, LruPolicy)
    for layer in range(3):
        policy.insert(key(0, layer))
    assert policy.victim(key(5, 1), lambda candidate: candidate.layer != 1) == key(0, 0)


@given(num_slots=st.integers(0, 200), experts=st.lists(st.integers(1, 20), min_size=1, max_size=12))
def test_shares_add_up_and_are_in_proportion(num_slots: int, experts: list[int]) -> None:
    per_layer = dict(enumerate(experts))
    shares = slots_per_layer(num_slots, per_layer)
    total = sum(experts)
    assert sum(shares.values()) == min(num_slots, total)
    for layer, count in per_layer.items():
        exact = min(num_slots, total) * count / total
        assert int(exact) <= shares[layer] <= min(int(exact) + 1, count)


def test_shares_follow_the_number_of_slots() -> None:
    policy = FairPolicy(4, {0: 8, 1: 8}, LruPolicy)
    policy.resize(8)
    assert policy.shares == {0: 4, 1: 4}


@pytest.mark.parametrize(
    ("held", "expected"),
    [((), 2), ((2,), 1), ((2, 1), 0), ((2, 1, 0), 3)],  # the layer itself, those before it, and the next one last
)
def test_a_stream_evicts_what_a_pass_needs_last(held: tuple[int, ...], expected: int) -> None:
    policy = make_policy(STREAM, 4, dict.fromkeys(range(4), 8))
    for layer in range(4):
        policy.insert(key(0, layer))
    assert policy.victim(key(5, 2), lambda candidate: candidate.layer not in held) == key(0, expected)


def test_an_unknown_name_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="'fifo' is not a cache policy; choose one of lru, lfru, slru, lfu, arc"):
        make_policy("fifo", 4, {0: 4})
