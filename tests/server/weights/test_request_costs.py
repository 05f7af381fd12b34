"""Costs and latencies of requests by the names of their weights."""

from __future__ import annotations

import pytest

from server.engine.interface import ExpertUsage, Timeline
from server.weights import request_costs
from server.weights.request_costs import CostsByName

USAGE = ExpertUsage(10, 3, 4096, 0.5)
ANSWERED = Timeline(1.0, 1.1, 1.2, 2.2, 2.3)  # its first token after 0.2 s, ten more in a second
CANCELLED = Timeline(1.0, 1.1, 1.2, 1.2)


def test_a_request_counts_for_each_of_its_names_once() -> None:
    costs = CostsByName()
    costs.add(["law", "code", "law"], USAGE, ANSWERED, 11)
    costs.add(["law"], USAGE, ANSWERED, 11)
    by_name = dict(costs.of(["law", "code", "other"]))
    assert {name: cost.usage for name, cost in by_name.items()} == {
        "law": USAGE + USAGE,
        "code": USAGE,
        "other": ExpertUsage(),
    }
    assert by_name["law"].first_token.cumulative()[-1] == 2


def test_latencies_are_those_of_the_timeline() -> None:
    costs = CostsByName()
    costs.add(["law"], USAGE, ANSWERED, 11)
    ((_, cost),) = costs.of(["law"])
    found = [round(each.sum, 6) for each in (cost.first_token, cost.output_token, cost.request)]
    assert found == [0.2, 0.1, 1.3]


def test_a_cancelled_request_has_no_latency_to_its_end_and_its_only_token_none_between_tokens() -> None:
    costs = CostsByName()
    costs.add(["law"], USAGE, CANCELLED, 1)
    ((_, cost),) = costs.of(["law"])
    counts = [each.cumulative()[-1] for each in (cost.first_token, cost.output_token, cost.request)]
    assert counts == [1, 0, 0]


def test_a_dropped_name_begins_anew() -> None:
    costs = CostsByName()
    costs.add(["law"], USAGE, ANSWERED, 11)
    costs.drop("law")
    ((_, cost),) = costs.of(["law"])
    assert (cost.num_ended, cost.usage) == (0, ExpertUsage())


def test_of_many_names_those_with_the_most_requests_are_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_costs, "MOST_NAMES", 2)
    costs = CostsByName()
    for name, count in (("law", 1), ("code", 3), ("poem", 2)):
        for _ in range(count):
            costs.add([name], USAGE, ANSWERED, 11)
    assert [name for name, _ in costs.of(["law", "code", "poem", "idle"])] == ["code", "poem"]
