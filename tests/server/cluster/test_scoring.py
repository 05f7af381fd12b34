"""Order of replicas for a request, by what they hold and how loaded they are."""

from __future__ import annotations

import random

import numpy as np
import pytest

from server.cluster.scoring import MAX_CANDIDATES, Costs, Fleet, ReplicaState
from server.cluster.signatures import RoutedRequest, Signature

BLOCKS = (b"a", b"b", b"c", b"d")
PROMPT = RoutedRequest(64, BLOCKS)


def make_fleet(*states: ReplicaState, max_candidates: int = MAX_CANDIDATES) -> Fleet:
    fleet = Fleet(Costs(), 16, random.Random(0), max_candidates)
    for number, state in enumerate(states):
        fleet.update(str(number), state)
    return fleet


def resident(*experts: int) -> np.ndarray:
    held = np.zeros((2, 8), dtype=np.bool_)
    held[:, list(experts)] = True
    return held


def test_the_replica_with_the_longest_prefix_comes_first() -> None:
    states = [ReplicaState(blocks=frozenset(BLOCKS[:count])) for count in (1, 4, 0)]
    assert make_fleet(*states).order(PROMPT, None) == ["1", "0", "2"]


def test_blocks_after_a_missing_one_are_not_counted() -> None:
    fleet = make_fleet(ReplicaState(blocks=frozenset(BLOCKS[1:])), ReplicaState(blocks=frozenset(BLOCKS[:1])))
    assert fleet.order(PROMPT, None)[0] == "1"


def test_the_replica_with_the_loaded_adapter_comes_first() -> None:
    fleet = make_fleet(ReplicaState(), ReplicaState(weights=frozenset({"law"})))
    assert fleet.order(RoutedRequest(10, weights=frozenset({"law"})), None)[0] == "1"


def test_the_replica_with_the_experts_of_the_signature_comes_first() -> None:
    signature = Signature.from_counts(np.eye(8)[[1, 1]])
    fleet = make_fleet(ReplicaState(resident=resident(0, 2)), ReplicaState(resident=resident(1)), ReplicaState())
    assert fleet.order(RoutedRequest(10), signature)[0] == "1"


def test_the_less_loaded_of_two_equal_replicas_comes_first() -> None:
    held = frozenset(BLOCKS)
    assert make_fleet(ReplicaState(1, held), ReplicaState(0, held)).order(PROMPT, None)[0] == "1"


def test_an_overloaded_replica_comes_last_whatever_it_holds() -> None:
    fleet = make_fleet(ReplicaState(100, frozenset(BLOCKS)), ReplicaState(1), ReplicaState(2))
    assert fleet.order(PROMPT, None)[-1] == "0"


def test_an_unknown_request_goes_to_the_less_loaded_of_two_random_replicas() -> None:
    fleet = make_fleet(*(ReplicaState(number) for number in range(5)))
    chosen = [fleet.order(PROMPT, None)[0] for _ in range(300)]
    assert {name: chosen.count(name) > 0 for name in "01234"} == dict(zip("01234", [True] * 4 + [False], strict=True))


def test_requests_of_one_prefix_stay_together_before_the_replica_reports() -> None:
    fleet = make_fleet(ReplicaState(), ReplicaState())
    fleet.sent("1", PROMPT)
    assert fleet.order(PROMPT, None)[0] == "1"


@pytest.mark.parametrize("is_ended", [True, False])
def test_a_request_counts_until_it_ends(is_ended: bool) -> None:
    fleet = make_fleet(*(ReplicaState(1, frozenset(BLOCKS)) for _ in range(2)))
    fleet.sent("0", PROMPT)
    if is_ended:
        fleet.ended("0")
        fleet.sent("1", PROMPT)
    assert fleet.order(PROMPT, None)[0] == ("0" if is_ended else "1")


def test_a_state_that_comes_late_does_not_replace_a_newer_one() -> None:
    fleet = make_fleet(ReplicaState(blocks=frozenset(BLOCKS), number=2), ReplicaState())
    fleet.update("0", ReplicaState(num_requests=100, number=1))
    assert fleet.order(PROMPT, None)[0] == "0"


def test_a_removed_replica_is_chosen_no_more() -> None:
    fleet = make_fleet(ReplicaState(blocks=frozenset(BLOCKS)), ReplicaState())
    fleet.remove("0")
    assert (fleet.order(PROMPT, None), len(fleet)) == (["1"], 1)


def test_no_replica_gives_no_order() -> None:
    assert make_fleet().order(PROMPT, None) == []


def test_the_only_holder_among_many_replicas_is_a_candidate() -> None:
    fleet = make_fleet(*(ReplicaState() for _ in range(200)), max_candidates=8)
    fleet.update("137", ReplicaState(blocks=frozenset(BLOCKS)))
    assert {fleet.order(PROMPT, None)[0] for _ in range(20)} == {"137"}


def test_what_a_replica_no_longer_holds_attracts_nothing() -> None:
    fleet = make_fleet(*(ReplicaState() for _ in range(200)), max_candidates=8)
    fleet.update("137", ReplicaState(blocks=frozenset(BLOCKS)))
    fleet.update("137", ReplicaState())
    assert len({fleet.order(PROMPT, None)[0] for _ in range(20)}) > 1


def test_routers_of_other_ingresses_are_taken_to_send_as_many_requests() -> None:
    states = (ReplicaState(num_requests=2), ReplicaState(blocks=frozenset(BLOCKS)))
    alone, one_of_four = (Fleet(Costs(request=0.01), 16, random.Random(0), num_senders=count) for count in (1, 4))
    for fleet in (alone, one_of_four):
        for name, state in zip("ab", states, strict=True):
            fleet.update(name, state)
        for _ in range(4):
            fleet.sent("b", PROMPT)
    assert alone.order(PROMPT, None)[0] == "b"
    assert one_of_four.order(PROMPT, None)[0] == "a"  # "b" is overloaded
