"""The governor detects whether prefetching pays in spite of noise."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from expert_store.prefetching.governor import (
    INTERVAL,
    MAX_INTERVAL,
    MAX_PAIRS,
    STEPS_BEFORE_FIRST_TRIAL,
    WINDOW,
    Governor,
)

LONG = 12_000  # steps
Cost = Callable[[int, bool], tuple[float, int]]  # step, active: seconds and look-ups


def run(cost: Cost, steps: int = LONG, governor: Governor | None = None) -> tuple[Governor, list[bool], float]:
    """Return the governor, whether each step prefetched, and the seconds of all steps together."""
    governor = governor or Governor()
    active, total = [], 0.0
    for step in range(steps):
        active.append(governor.is_active)
        seconds, lookups = cost(step, governor.is_active)
        total += seconds
        governor.record(seconds, lookups)
    return governor, active, total


def noisy(gain: float, seed: int, spread: float = 0.1) -> Cost:
    """Steps of 100 ms that prefetching makes ``gain`` times as long; noise, and a hiccup now and then."""
    noise = random.Random(seed)

    def cost(step: int, is_active: bool) -> tuple[float, int]:
        seconds = 0.1 * noise.lognormvariate(0, spread) * (gain if is_active else 1)
        return seconds * (10 if noise.random() < 0.02 else 1), 100

    return cost


def share(active: list[bool]) -> float:
    return sum(active) / len(active)


def test_it_begins_without() -> None:
    _, active, _ = run(lambda step, is_active: (0.1, 100), STEPS_BEFORE_FIRST_TRIAL)
    assert not any(active)


def test_it_begins_with_where_misses_are_slow_and_stops_if_it_does_not_pay() -> None:
    governor = Governor(begins_active=True)
    _, active, _ = run(noisy(1.2, 0), steps=INTERVAL, governor=governor)
    assert all(active[: STEPS_BEFORE_FIRST_TRIAL - 1])
    assert not governor.is_active


@pytest.mark.parametrize("seed", range(5))
def test_what_pays_is_switched_on(seed: int) -> None:
    governor, active, _ = run(noisy(0.8, seed))
    assert governor.is_active
    assert share(active[1000:]) > 0.9


@pytest.mark.parametrize("seed", range(5))
def test_what_does_not_pay_is_switched_off(seed: int) -> None:
    _, active, _ = run(noisy(1.2, seed))
    assert share(active) < 0.04


@pytest.mark.parametrize("loss", [1.05, 1.2, 1.5, 2.0])
def test_a_loss_costs_a_few_percent_at_most(loss: float) -> None:
    steps = 4000
    _, _, total = run(noisy(loss, 1, spread=0.05), steps)
    _, _, without = run(noisy(1.0, 1, spread=0.05), steps)
    assert total / without < 1.03


def test_a_clear_loss_ends_the_trial_early() -> None:
    _, active, _ = run(noisy(1.5, 3, spread=0.01), STEPS_BEFORE_FIRST_TRIAL + INTERVAL)
    assert sum(active) == 3 * WINDOW


def test_a_gain_too_small_to_see_does_not_flip_back_and_forth() -> None:
    """Without any difference the choice may be either; it costs nothing, and trials become rare."""
    governor, active, _ = run(lambda step, is_active: (0.1, 100))
    assert not governor.is_active
    assert governor._interval == MAX_INTERVAL
    assert share(active) < 0.05


@pytest.mark.parametrize(("before", "after", "is_active"), [(0.8, 1.3, False), (1.3, 0.8, True)])
def test_a_change_is_found(before: float, after: float, is_active: bool) -> None:
    governor, _, _ = run(noisy(before, 1), 2000)
    assert governor._choice is not is_active
    governor, _, _ = run(noisy(after, 2), MAX_INTERVAL + 2 * WINDOW * MAX_PAIRS, governor)
    assert governor._choice is is_active


def test_a_drift_is_not_taken_for_a_gain() -> None:
    """Every step is longer than the one before, as when texts grow."""
    governor, _, _ = run(lambda step, is_active: (0.1 * 1.002**step, 100), 1000)
    assert not governor._choice
    governor, _, _ = run(lambda step, is_active: (0.1 * 0.998**step, 100), 1000)
    assert not governor._choice


@pytest.mark.parametrize("gain", [0.8, 1.2])
def test_batches_of_changing_size_do_not_mislead(gain: float) -> None:
    """The batch grows and shrinks by a factor of 16; a look-up costs what it costs, with a part fixed a step."""
    sizes = random.Random(5)
    state = [100.0]

    def cost(step: int, is_active: bool) -> tuple[float, int]:
        state[0] = min(800.0, max(50.0, state[0] * sizes.lognormvariate(0, 0.05)))
        lookups = int(state[0])
        return (0.02 + 0.001 * lookups) * (gain if is_active else 1), lookups

    governor, _, _ = run(cost, 3000)
    assert governor._choice is (gain < 1)


def test_windows_that_cannot_be_compared_change_nothing() -> None:
    """Each window has twice the look-ups of the other kind, so that no pair counts."""
    cost = lambda step, is_active: (0.1, 200 if is_active else 100)  # noqa: E731
    governor, _, _ = run(cost, 2 * INTERVAL)
    assert not governor._choice


def test_steps_without_look_ups_are_not_counted() -> None:
    governor, active, _ = run(lambda step, is_active: (0.1, 0), 500)
    assert not any(active)
    assert governor.seconds_with is None


def test_it_reports_its_measurements() -> None:
    governor, _, _ = run(lambda step, is_active: (0.05 if is_active else 0.1, 100), 200)
    assert (governor.seconds_with, governor.seconds_without) == (0.05, 0.1)
