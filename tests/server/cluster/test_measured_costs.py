"""Costs from what replicas have measured."""

from dataclasses import replace

import pytest

from server.cluster.measured_costs import Work, mean_costs, measured_costs
from server.cluster.scoring import Costs

WORK = Work(
    prompt_tokens=2000,
    generated_tokens=4000,
    ended_requests=40,
    prefill_seconds=4.0,
    decode_seconds=50.0,
    decode_lookups=32_000,
    decode_misses=1000,
    decode_stall_seconds=10.0,
)


def test_costs_follow_from_the_work() -> None:
    costs = measured_costs(WORK)
    assert costs.prompt_token == pytest.approx(0.002)
    assert costs.stalls == pytest.approx(8 * 0.01)  # look-ups of a token, and seconds of a miss
    assert costs.request == pytest.approx(100 * 0.01)
    assert costs.completion_tokens == 100


def test_experts_do_not_matter_where_nothing_is_missed() -> None:
    assert measured_costs(replace(WORK, decode_misses=0, decode_stall_seconds=0.0)).stalls == 0


def test_a_new_replica_has_the_costs_of_any_model() -> None:
    assert measured_costs(Work()) == Costs()
    assert measured_costs(replace(WORK, ended_requests=0)) == Costs()


def test_costs_of_several_replicas_are_averaged() -> None:
    assert mean_costs([Costs(request=0.2, completion_tokens=10), Costs(request=0.4, completion_tokens=20)]) == Costs(
        request=pytest.approx(0.3), completion_tokens=15
    )
