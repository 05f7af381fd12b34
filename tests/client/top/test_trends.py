"""Rates of the last seconds, and decay of the heat."""

from __future__ import annotations

import pytest

from client.top.trends import HALF_LIFE_SECONDS, WINDOW_SECONDS, Rates, Trends
from tests.client.top.frames import frame

ROWS = ((0, 1),)


def test_rates_are_those_of_the_window() -> None:
    trends = Trends(frame(ROWS, generation_tokens=1000), 0.0)
    assert trends.view.rates == Rates()
    for step in range(1, 41):  # twenty seconds; the last ten have ten times the tokens
        generated = 1000 + step * 5 + max(0, step - 20) * 45
        trends.add(
            frame(
                ROWS,
                generation_tokens=generated,
                prompt_tokens=step,
                loaded_bytes=step * 512,
                stall_seconds=step / 8,
            ),
            step / 2,
        )
    assert trends.view.rates == Rates(1024.0, 0.25, 2.0, 100.0)


def test_a_window_without_frames_is_as_long_as_the_last_pause() -> None:
    trends = Trends(frame(ROWS), 0.0)
    trends.add(frame(ROWS, generation_tokens=60), 6 * WINDOW_SECONDS)
    assert trends.view.rates.generation_tokens == 2.0


def test_stall_share_is_at_most_one() -> None:
    trends = Trends(frame(ROWS), 0.0)
    trends.add(frame(ROWS, stall_seconds=3.0), 1.0)
    assert trends.view.rates.stall_share == 1.0


def test_totals_that_fall_as_a_replica_is_gone_give_no_rate_and_no_heat() -> None:
    trends = Trends(frame(ROWS, ((0, 0),), generation_tokens=600, loaded_bytes=512), 0.0)
    trends.add(frame(ROWS, ((8, 8),), generation_tokens=600, loaded_bytes=512), 1.0)
    trends.add(frame(ROWS, ((4, 9),), generation_tokens=51, loaded_bytes=256), 1.0 + HALF_LIFE_SECONDS)
    assert trends.view.rates == Rates()
    assert trends.view.heat == [[pytest.approx(4.0), pytest.approx(5.0)]]


def test_heat_fades_by_half() -> None:
    trends = Trends(frame(ROWS, ((0, 0),)), 0.0)
    trends.add(frame(ROWS, ((8, 0),)), 1.0)
    assert trends.view.heat == [[8.0, 0.0]]
    trends.add(frame(ROWS, ((8, 3),)), 1.0 + HALF_LIFE_SECONDS)
    assert trends.view.heat == [[pytest.approx(4.0), 3.0]]


def test_initial_heat_is_faint() -> None:
    assert Trends(frame(ROWS, ((500, 1000),)), 0.0).view.heat == [[0.5, 1.0]]
    assert Trends(frame(()), 0.0).view.heat == []
