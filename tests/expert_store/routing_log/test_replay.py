"""Replay drives the real tier, and no policy beats Belady's optimum."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from expert_store import ExpertKey
from expert_store.policies import POLICIES, LruPolicy
from expert_store.routing_log.log import LoggedLease, RoutingLog, RoutingLogHeader
from expert_store.routing_log.replay import optimal, optimal_by_lease, replay, replay_lease, replay_optimal, slot_pools
from expert_store.tier import Tier

Key = tuple[int, int]


def decode(layer: int, *experts: int) -> LoggedLease:
    return LoggedLease(layer, experts, "decode")


def prefill(layer: int, *experts: int) -> LoggedLease:
    return LoggedLease(layer, experts, "prefill")


def one_layer(num_experts: int, *leases: LoggedLease) -> RoutingLog:
    return RoutingLog(RoutingLogHeader("tiny", {0: num_experts}, {0: 4096}), list(leases))


def lease_lists(layers: int, experts: int, most: int) -> st.SearchStrategy[list[LoggedLease]]:
    lease = st.builds(
        lambda layer, chosen: decode(layer, *chosen),
        st.integers(0, layers - 1),
        st.lists(st.integers(0, experts - 1), min_size=1, max_size=experts, unique=True),
    )
    return st.lists(lease, max_size=most)


def most_hits(leases: list[LoggedLease], num_slots: int, initial: frozenset[Key] = frozenset()) -> int:
    """Tries every set of experts that could stay after each lease; one that is asked for alone stays."""

    @cache
    def from_lease(index: int, resident: frozenset[Key]) -> int:
        if index == len(leases):
            return 0
        wanted = frozenset((leases[index].layer, expert) for expert in leases[index].experts)
        known = sorted(wanted | resident)
        rests = map(frozenset, combinations(known, min(num_slots, len(known))))
        return len(wanted & resident) + max(
            from_lease(index + 1, rest) for rest in rests if len(wanted) > 1 or wanted <= rest
        )

    return from_lease(0, initial)


@pytest.mark.slow
@example(leases=[decode(0, 0, 1), decode(0, 0, 1), decode(0, 0)], initial=set(), spare=0)
@given(
    leases=lease_lists(2, 3, 6),
    initial=st.sets(st.tuples(st.integers(0, 2), st.integers(0, 4)), max_size=4),
    spare=st.integers(0, 3),
)
def test_the_optimum_is_what_trying_everything_finds(leases: list[LoggedLease], initial: set[Key], spare: int) -> None:
    num_slots = max(1, len(initial) + spare)
    residents = [ExpertKey(*key) for key in initial]
    assert optimal(leases, num_slots, residents) == most_hits(leases, num_slots, frozenset(initial))


@pytest.mark.slow
@settings(max_examples=60)
@given(leases=lease_lists(3, 5, 40))
def test_no_policy_beats_the_optimum_at_any_size(leases: list[LoggedLease]) -> None:
    routing_log = RoutingLog(
        RoutingLogHeader("tiny", dict.fromkeys(range(3), 5), dict.fromkeys(range(3), 4096)), leases
    )
    for num_slots in range(1, 16):
        best = replay_optimal(routing_log, num_slots)
        for name in POLICIES:
            result = replay(routing_log, name, num_slots)
            assert result.hits.total() <= best.hits.total()
            assert result.lookups == best.lookups


@pytest.mark.parametrize("name", POLICIES)
def test_with_a_slot_for_each_expert_only_the_first_look_ups_miss(name: str) -> None:
    routing_log = one_layer(4, *[decode(0, n % 4, (n + 1) % 4) for n in range(20)])
    result = replay(routing_log, name, 4)
    assert result.hits.total() == replay_optimal(routing_log, 4).hits.total() == 36
    assert result.bytes_loaded == 4 * 4096


def test_a_cycle_defeats_lru_and_not_the_optimum() -> None:
    routing_log = one_layer(3, *[decode(0, n % 3) for n in range(30)])
    assert replay(routing_log, "lru", 2).hits.total() == 0
    assert replay_optimal(routing_log, 2).hits.total() == 14


def test_phases_are_counted_apart() -> None:
    routing_log = one_layer(4, prefill(0, 0, 1, 2), decode(0, 1, 2), decode(0, 1, 3))
    result = replay(routing_log, "lru", 3)
    assert result.lookups == {"prefill": 3, "decode": 4}
    assert result.hits == {"prefill": 0, "decode": 3}
    assert result.hit_ratio("decode") == 0.75
    assert result.hit_ratio() == 3 / 7


def test_a_phase_without_look_ups_has_no_ratio() -> None:
    assert replay(one_layer(4, prefill(0, 1)), "lru", 1).hit_ratio("decode") is None


def test_all_hits_of_a_lease_are_held_before_anything_goes() -> None:
    """Expert 1 is the oldest and is asked for together with one that is missing."""
    tier = Tier(2, LruPolicy(2))
    replay_lease(tier, decode(0, 1), 2)
    replay_lease(tier, decode(0, 2), 2)
    assert replay_lease(tier, decode(0, 3, 1), 2) == 1
    tier.check_integrity()
    assert {key.expert for key in tier.resident} == {1, 3}


def test_a_lease_of_more_experts_than_slots_goes_in_waves() -> None:
    tier = Tier(2, LruPolicy(2))
    assert replay_lease(tier, decode(0, 0, 1, 2, 3, 4), 2) == 0
    tier.check_integrity()
    assert {key.expert for key in tier.resident} == {3, 4}


def test_a_lease_wider_than_its_share_leaves_other_layers_theirs() -> None:
    """Two layers of two slots each; one lease of four experts reads two at a time."""
    leases = [decode(0, 0, 1), decode(1, 0, 1, 2, 3), decode(0, 0, 1)]
    header = RoutingLogHeader("tiny", {0: 4, 1: 4}, {0: 4096, 1: 4096})
    assert replay(RoutingLog(header, leases), "lru", 4).hits.total() == 2


def test_layers_of_other_sizes_have_their_own_slots() -> None:
    header = RoutingLogHeader("tiny", {0: 8, 1: 8, 2: 4}, {0: 4096, 1: 4096, 2: 8192})
    assert [(list(pool.experts_per_layer), pool.num_slots) for pool in slot_pools(header, 10)] == [
        ([0, 1], 8),
        ([2], 2),
    ]
    routing_log = RoutingLog(header, [decode(2, 0, 1), decode(0, 0, 1, 2, 3), decode(2, 0, 1), decode(0, 0, 1, 2, 3)])
    for result in (replay(routing_log, "lru", 10), replay_optimal(routing_log, 10)):
        assert result.hits.total() == 6
        assert result.bytes_loaded == 4 * 4096 + 2 * 8192


def test_too_few_slots_name_the_layer_that_gets_none() -> None:
    header = RoutingLogHeader("tiny", {0: 16, 1: 2}, {0: 4096, 1: 8192})
    with pytest.raises(ValueError, match="5 slots leave none for the experts of layer 1"):
        replay(RoutingLog(header, []), "lru", 5)


def test_more_residents_than_slots_are_refused() -> None:
    with pytest.raises(ValueError, match="1 slots can't hold 2 residents"):
        optimal_by_lease([], 1, [ExpertKey(0, 0), ExpertKey(0, 1)])


def test_subsets_of_a_lease_never_hit_more_than_its_experts() -> None:
    leases = [decode(0, *chosen) for chosen in combinations(range(5), 2)]
    assert all(0 <= hits <= 2 for hits in optimal_by_lease(leases, 3))
