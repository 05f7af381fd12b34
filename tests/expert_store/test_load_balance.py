"""Load balance of layers over windows of tokens."""

from __future__ import annotations

import numpy as np

from expert_store.load_balance import TOKENS_PER_EXPERT, LayerBalance, LoadBalance

WINDOW = TOKENS_PER_EXPERT


def test_nothing_is_told_before_a_window_is_complete() -> None:
    balance = LoadBalance({1: 2, 4: 2})
    assert balance.recent(np.array([[WINDOW, WINDOW], [WINDOW, WINDOW - 1]])) == ()


def test_dead_and_overloaded_experts_of_a_layer_are_named() -> None:
    tokens = np.full((2, 8), WINDOW)
    tokens[1, 2], tokens[1, 6] = 0, 16 * WINDOW
    even, uneven = LoadBalance({1: 8, 4: 8}).recent(tokens)
    assert even == LayerBalance(1, 0.0, 1.0, (), ())
    assert uneven.layer == 4
    assert uneven.dead == (2,)
    assert uneven.overloaded == (6,)
    assert uneven.max_over_mean == 16 * 8 / 22
    assert np.isclose(uneven.cv, np.std(tokens[1]) / np.mean(tokens[1]))


def test_a_window_forgets_the_tokens_before_it() -> None:
    balance = LoadBalance({0: 2})
    first = np.array([[2 * WINDOW, 0]])
    (layer,) = balance.recent(first)
    assert layer.dead == (1,)
    (layer,) = balance.recent(first + WINDOW)
    assert (layer.cv, layer.dead) == (0.0, ())


def test_a_recent_window_stays_the_same_object_until_the_next() -> None:
    balance = LoadBalance({0: 2})
    recent = balance.recent(np.array([[WINDOW, WINDOW]]))
    assert balance.recent(np.array([[WINDOW, WINDOW + 1]])) is recent


def test_columns_beyond_the_experts_of_a_layer_do_not_count() -> None:
    assert LoadBalance({0: 2, 1: 4}).recent(np.array([[128, 128, 0, 0], [64, 64, 64, 64]]))[0].dead == ()


def test_a_layer_without_tokens_has_only_dead_experts() -> None:
    _, idle = LoadBalance({0: 2, 1: 2}).recent(np.array([[2 * WINDOW, 2 * WINDOW], [0, 0]]))
    assert idle == LayerBalance(1, 0.0, 0.0, (0, 1), ())
