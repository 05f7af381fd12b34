"""The prefetcher: its predictions, its requests and its counters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from expert_store.keys import ExpertKey
from expert_store.prefetching.governor import Governor
from expert_store.prefetching.prefetcher import SAMPLING_INTERVAL, Prefetcher, make_prefetcher

LAYERS = {0: 8, 2: 8, 4: 8}


class FakeStore:
    """Starts all reads, or the given numbers of them, and records the requests."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, list[int]]] = []
        self.admits: list[int] = []

    def prefetch(self, keys: Sequence[ExpertKey]) -> int:
        self.asked.append((keys[0].layer, [key.expert for key in keys]))
        return self.admits.pop(0) if self.admits else len(keys)


class FixedGovernor(Governor):
    """Always decides the same."""

    def __init__(self, is_active: bool):
        super().__init__()
        self.fixed = is_active
        self.recorded: list[tuple[float, int]] = []

    @property
    def is_active(self) -> bool:
        return self.fixed

    def record(self, seconds: float, lookups: int) -> None:
        self.recorded.append((seconds, lookups))


def gate(hidden_states: Any) -> np.ndarray:
    """A gate whose hidden states are the experts themselves."""
    return np.asarray(hidden_states)


def make(mode: Any, is_active: bool = True, gated: Sequence[int] = (0, 2)) -> tuple[Prefetcher, FakeStore]:
    store = FakeStore()
    prefetcher = make_prefetcher(mode, store, LAYERS, dict.fromkeys(gated, gate))
    assert prefetcher is not None
    prefetcher._governor = FixedGovernor(is_active)
    return prefetcher, store


def run_step(prefetcher: Prefetcher, *layers: tuple[list[list[int]], list[list[int]]], seconds: float = 0.1) -> None:
    """A step whose layers choose the first and whose gates name the second of each pair."""
    prefetcher.begin_step()
    for layer, (chosen, hinted) in zip(LAYERS, layers, strict=True):
        prefetcher.observe(layer, np.array(chosen), hinted)
        prefetcher.request()
    prefetcher.end_step(seconds)


STEP = (([[0, 1]], [[2, 3]]), ([[2, 4]], [[5, 6]]), ([[5, 6]], [[0, 1]]))


def test_off_is_nothing() -> None:
    assert make_prefetcher("off", FakeStore(), LAYERS, {}) is None


def test_gates_name_the_next_layers_experts() -> None:
    prefetcher, store = make("gate")
    run_step(prefetcher, *STEP)
    assert store.asked == [(2, [2, 3]), (4, [5, 6])]


def test_auto_takes_co_activation_where_there_is_no_gate() -> None:
    """The last layer is followed by the first one of the next step, which no gate foresees."""
    prefetcher, store = make("auto")
    run_step(prefetcher, *STEP)
    run_step(prefetcher, *STEP)
    assert store.asked[3:5] == [(2, [2, 3]), (4, [5, 6])]
    assert store.asked[-1][0] == 0
    assert set(store.asked[-1][1]) == {0, 1}


def test_co_activation_does_not_ask_gates() -> None:
    prefetcher, store = make("coactivation")
    run_step(prefetcher, *STEP)
    run_step(prefetcher, *STEP)
    assert set(store.asked[3][1]) == {2, 4}
    assert prefetcher.statistics().predicted["gate"] == 0


def test_the_likeliest_of_all_tokens_come_first() -> None:
    prefetcher, store = make("gate")
    prefetcher.begin_step()
    prefetcher.observe(0, np.array([[0, 1], [0, 2]]), [[7, 3], [6, 7]])
    prefetcher.request()
    assert store.asked == [(2, [7, 6, 3])]


@pytest.mark.parametrize(("admits", "asks"), [([0, 0, 0, 0], 4), ([0, 2, 1, 1], 4), ([0, 2, 0, 1], 3), ([2, 0, 0], 2)])
def test_requests_go_on_until_the_store_starts_no_more(admits: list[int], asks: int) -> None:
    """The store starts none at first, while demands wait; once it has started some and then none, requests end."""
    prefetcher, store = make("gate")
    store.admits = list(admits)
    prefetcher.begin_step()
    prefetcher.observe(0, np.array([[0, 1]]), [[2, 3]])
    for _ in admits:
        prefetcher.request()
    assert [layer for layer, _ in store.asked] == [2] * asks


def test_ranks_that_are_mostly_wrong_are_not_requested() -> None:
    """The second of two predictions is never correct, but still counts for recall."""
    prefetcher, store = make("gate")
    for _ in range(8):
        run_step(prefetcher, ([[0, 1]], [[2, 3]]), ([[2, 4]], [[5, 6]]), ([[5, 6]], [[0, 1]]))
    assert store.asked[0] == (2, [2, 3])
    assert store.asked[-2:] == [(2, [2]), (4, [5, 6])]
    assert prefetcher.statistics().recall[2] == 0.5


def test_nothing_is_requested_while_switched_off() -> None:
    prefetcher, store = make("auto", is_active=False)
    for _ in range(3):
        run_step(prefetcher, *STEP)
    assert store.asked == []


def test_recall_stays_known_while_switched_off() -> None:
    prefetcher, _ = make("gate", is_active=False)
    for _ in range(SAMPLING_INTERVAL + 1):
        run_step(prefetcher, *STEP)
    statistics = prefetcher.statistics()
    assert statistics.predicted["gate"] == 3 * 4
    assert statistics.recall == {2: 0.5, 4: 1.0}


def test_a_step_that_only_counts_neither_learns_nor_predicts() -> None:
    """Switched off, most steps cost next to nothing; look-ups are still counted for the governor."""
    prefetcher, _ = make("auto", is_active=False)
    for _ in range(SAMPLING_INTERVAL):
        run_step(prefetcher, *STEP)
    assert prefetcher.statistics().predicted == {"gate": 8, "coactivation": 2}
    governor = prefetcher._governor
    assert isinstance(governor, FixedGovernor)
    assert governor.recorded == [(0.1, 6)] * SAMPLING_INTERVAL


def test_co_activation_is_learnt_only_where_there_is_no_gate() -> None:
    prefetcher, _ = make("auto")
    for _ in range(3):
        run_step(prefetcher, *STEP)
    coactivation = prefetcher._coactivation
    assert coactivation is not None
    learnt = [layer for layer, table in coactivation._transitions.items() if table._together.any()]
    assert learnt == [4]


def test_what_is_counted() -> None:
    prefetcher, _ = make("auto")
    run_step(prefetcher, *STEP)
    run_step(prefetcher, *STEP)
    statistics = prefetcher.statistics()
    assert statistics.is_active
    assert statistics.predicted == {"gate": 8, "coactivation": 2}
    assert statistics.correct["gate"] == 6
    assert set(statistics.recall) == {0, 2, 4}


def test_a_step_that_failed_leaves_no_prediction_behind() -> None:
    prefetcher, _ = make("gate")
    prefetcher.begin_step()
    prefetcher.observe(0, np.array([[0, 1]]), [[2, 3]])
    run_step(prefetcher, *STEP)
    assert prefetcher.statistics().predicted["gate"] == 4


def test_the_governor_gets_seconds_and_distinct_experts() -> None:
    prefetcher, _ = make("gate")
    run_step(prefetcher, *[([[0, 1], [1, 8]], [[0, 0]])] * 3, seconds=0.5)
    governor = prefetcher._governor
    assert isinstance(governor, FixedGovernor)
    assert governor.recorded == [(0.5, 6)]


@pytest.mark.parametrize("mode", ["gate", "coactivation", "auto"])
def test_a_new_prefetcher_waits_for_its_trial(mode: Any) -> None:
    prefetcher = make_prefetcher(mode, FakeStore(), LAYERS, {})
    assert prefetcher is not None
    assert not prefetcher.statistics().is_active
    assert prefetcher.statistics().seconds_with is None
