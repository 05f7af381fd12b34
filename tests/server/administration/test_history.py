"""The history of a server's totals."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from server.administration.history import NUM_POINTS, SERIES, History
from server.engine.engine_statistics import FIRST_TOKEN_BOUNDS, INTER_TOKEN_BOUNDS
from server.engine.histogram import Histogram

NO_RESPONSES = {"num_errors": 0, "num_rate_limited": 0, "num_client_errors": 0}


@dataclass
class Recorded:
    """A history whose clock and totals a test sets."""

    seconds: float = 1000.0
    first_token: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_BOUNDS))
    totals: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.clock_error = 0.0
        self.history = History(self._read, lambda: self.seconds + self.clock_error, lambda: self.seconds)

    def record(self, seconds: float = 5.0, **totals: Any) -> None:
        self.seconds += seconds
        self.totals |= totals
        self.history.record()

    def line(self, name: str) -> list[float | None]:
        found: list[float | None] = self.history.lines(0)["series"][name]
        return found

    def _read(self) -> dict[str, Any]:
        counters = dict.fromkeys(("loaded_bytes", "stall_seconds", "prompt_tokens", "generation_tokens"), 0)
        gauges = {"num_requests_running": 0, "num_requests_waiting": 0, "kv_cache_usage": 0.0}
        return {
            **counters,
            **gauges,
            "hit_ratio": None,
            "optimal_hit_ratio": None,
            "responses": NO_RESPONSES,
            "first_token": {"cumulative": self.first_token.cumulative()},
            "inter_token": {"cumulative": Histogram(INTER_TOKEN_BOUNDS).cumulative()},
            **self.totals,
        }


@pytest.fixture
def recorded() -> Recorded:
    recorded = Recorded()
    recorded.record()
    return recorded


def test_the_first_reading_is_no_point(recorded: Recorded) -> None:
    assert recorded.history.lines(0) == {
        "object": "history",
        "interval_seconds": 5.0,
        "times": [],
        "series": {name: [] for name in SERIES},
    }


def test_a_point_has_the_growth_by_second_since_the_one_before(recorded: Recorded) -> None:
    recorded.record(generation_tokens=50, stall_seconds=2.5)
    recorded.record(generation_tokens=90)
    recorded.record(seconds=20.0, generation_tokens=100)  # the machine was busy
    assert recorded.line("generation_tokens_per_second") == [10, 8, 0.5]
    assert recorded.line("stall_share") == [0.5, 0, 0]


def test_gauges_are_as_they_were_and_null_while_unknown(recorded: Recorded) -> None:
    recorded.record(num_requests_waiting=7)
    recorded.record(num_requests_waiting=2, hit_ratio=0.75)
    assert recorded.line("num_requests_waiting") == [7, 2]
    assert recorded.line("hit_ratio") == [None, 0.75]


def test_responses_are_those_of_the_interval(recorded: Recorded) -> None:
    recorded.record(responses=NO_RESPONSES | {"num_rate_limited": 3})
    recorded.record(responses=NO_RESPONSES | {"num_rate_limited": 4, "num_errors": 1})
    assert (recorded.line("num_rate_limited"), recorded.line("num_errors")) == ([3, 1], [0, 1])


def test_quantiles_are_those_of_the_last_minute(recorded: Recorded) -> None:
    for seconds in (0.15, 0.15, 0.15, 3.0):
        recorded.first_token.observe(seconds)
    for _ in range(13):
        recorded.record()
    medians, tails = recorded.line("first_token_p50"), recorded.line("first_token_p99")
    assert medians[:12] == [0.2] * 12  # two thirds of the bucket from 0.1 to 0.25
    assert tails[:12] == [4.9] * 12  # 96 % of that from 2.5 to 5
    assert medians[12] is tails[12] is None


def test_totals_that_fall_as_a_replica_is_gone_are_no_growth(recorded: Recorded) -> None:
    for seconds in (0.15, 0.15, 3.0):
        recorded.first_token.observe(seconds)
    for _ in range(13):
        recorded.record(generation_tokens=50, stall_seconds=2.5)
    recorded.first_token = Histogram(FIRST_TOKEN_BOUNDS)
    recorded.first_token.observe(3.0)
    recorded.record(generation_tokens=40, stall_seconds=1.0)
    fallen = ("generation_tokens_per_second", "stall_share", "first_token_p50")
    assert [recorded.line(name)[-1] for name in fallen] == [0, 0, None]


def test_the_oldest_points_make_room_for_the_newest(recorded: Recorded) -> None:
    for number in range(NUM_POINTS + 3):
        recorded.record(num_requests_running=number)
    assert recorded.line("num_requests_running") == list(range(3, NUM_POINTS + 3))


def test_points_that_a_client_has_are_left_out(recorded: Recorded) -> None:
    for number in range(4):
        recorded.record(num_requests_running=number)
    times = recorded.history.lines(0)["times"]
    later = recorded.history.lines(times[1])
    assert (later["times"], later["series"]["num_requests_running"]) == (times[2:], [2, 3])


def test_a_clock_that_is_set_back_hides_no_points(recorded: Recorded) -> None:
    recorded.record(num_requests_running=1)
    before = recorded.history.lines(0)["times"][-1]
    recorded.clock_error = -500.0
    recorded.record(num_requests_running=2)
    recorded.record(num_requests_running=3)
    assert recorded.history.lines(before)["series"]["num_requests_running"] == [2, 3]
