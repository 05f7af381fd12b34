"""The report of benchmarks.memory, and its measurements of a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.comparison.control_group import ControlGroup, ControlGroupError
from benchmarks.memory_use.load import Load
from benchmarks.memory_use.report import has_failures, make_table, sweep_lines
from benchmarks.memory_use.server import GroupedServer, ServerError, Usage
from benchmarks.memory_use.usage_sampler import max_by_thirds

MIB = 1 << 20
BUNDLED = Path(__file__).parents[2] / "server/demo/model"


def entry(budget: str = "auto", speed: float = 4.0, **others: Any) -> dict[str, Any]:
    return {
        "limit_mib": 100,
        "budget": budget,
        "streams": 8,
        "prompt_tokens": 64,
        "state": "alive",
        "peak_bytes": 100 * MIB,
        "group_bytes": 95 * MIB,
        "tokens_per_second": speed,
        **others,
    }


def test_killed_load_has_a_row() -> None:
    killed = {"limit_mib": None, "budget": "auto", "streams": 1, "prompt_tokens": 4000, "state": "killed"}
    console = Console(width=170)
    with console.capture() as capture:
        console.print(make_table([entry(), killed | {"peak_bytes": None}]))
    _, first, second = (line.split() for line in capture.get().splitlines())
    assert first == ["100", "MiB", "auto", "8", "x", "64", "alive", "100", "95%", "4.00"]
    assert second == ["no", "limit", "auto", "1", "x", "4000", "killed"]


def test_planned_budget_is_compared_with_the_best_surviving_swept_budget() -> None:
    killed = entry("80MiB", 9.0, state="killed")
    entries = [entry(speed=3.0), entry(speed=5.0), entry("60MiB", 5.0), entry("70MiB", 2.0), killed]
    assert list(sweep_lines(entries, "auto")) == ["100 MiB, 8 x 64: auto is 0.80 of the best swept budget (60MiB)"]


@pytest.mark.parametrize(
    ("figures", "is_failure"),
    [
        ({}, False),
        ({"state": "refused"}, False),
        ({"state": "failed"}, True),
        ({"state": "killed"}, True),
        ({"peak_bytes": 101 * MIB}, True),
    ],
)
def test_kills_failures_and_exceeded_limits_fail_the_run(figures: dict[str, Any], is_failure: bool) -> None:
    assert has_failures([entry(**figures)]) is is_failure


def test_memory_over_time_is_summarised_by_thirds() -> None:
    def usage(anonymous: int, other: int | None) -> Usage:
        return Usage(anonymous, other, None, None, {}, 0, 0)

    samples = [(1.0, usage(10, 5)), (2.9, usage(8, None)), (9.0, usage(20, None))]
    assert max_by_thirds(samples) == {"anonymous_bytes": [10, None, 20], "other_bytes": [5, None, None]}


@pytest.fixture
def control_groups() -> None:
    try:
        ControlGroup(None).close()
    except ControlGroupError as error:
        pytest.skip(str(error))


@pytest.fixture
def server(control_groups: None, tmp_path: Path) -> Iterator[GroupedServer]:
    del control_groups
    with GroupedServer(BUNDLED, 2048 * MIB, [], tmp_path / "log") as running:
        yield running


@pytest.mark.slow
def test_server_is_measured_by_the_counters_of_its_group(server: GroupedServer) -> None:
    speed = Load(streams=2, prompt_tokens=8, new_tokens=4).run(server.url, vocab_size=4000, seed=0)
    usage = server.usage()
    assert speed.tokens_per_second > 0
    assert usage.group_bytes is not None
    assert usage.peak_bytes is not None
    assert 50 * MIB < usage.anonymous_bytes <= usage.group_bytes <= usage.peak_bytes <= 2048 * MIB
    assert not server.was_killed


@pytest.mark.slow
@pytest.mark.usefixtures("control_groups")
def test_server_that_does_not_fit_its_group_is_reported_as_killed(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="did not start; killed by the kernel"):
        GroupedServer(BUNDLED, 64 * MIB, [], tmp_path / "log")
