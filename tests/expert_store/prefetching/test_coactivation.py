"""Co-activation is learnt, and forgotten again."""

from __future__ import annotations

import numpy as np
import pytest

from expert_store.prefetching.coactivation import HALF_LIFE, LARGEST_UNIT, CoactivationPredictor

LAYERS = {3: 8, 5: 6}


def index(*rows: tuple[int, ...]) -> np.ndarray:
    return np.array(rows)


def run(predictor: CoactivationPredictor, first: np.ndarray, second: np.ndarray, steps: int = 1) -> None:
    for _ in range(steps):
        predictor.observe(3, first)
        predictor.observe(5, second)


def test_what_followed_is_predicted() -> None:
    predictor = CoactivationPredictor(LAYERS)
    run(predictor, index((0, 1)), index((4, 5)), 5)
    run(predictor, index((2, 3)), index((0, 1)), 5)
    assert set(predictor.predict(3, index((0, 1)), 2)) == {4, 5}
    assert set(predictor.predict(3, index((2, 3)), 2)) == {0, 1}


def test_the_first_layer_of_the_next_step_follows_the_last_one() -> None:
    predictor = CoactivationPredictor(LAYERS)
    run(predictor, index((6, 7)), index((1, 2)), 3)
    assert set(predictor.predict(5, index((1, 2)), 2)) == {6, 7}


def test_tokens_are_paired_one_by_one() -> None:
    """Two tokens that always come together still keep their own followers apart."""
    predictor = CoactivationPredictor(LAYERS)
    run(predictor, index((0, 1), (2, 3)), index((4, 5), (0, 1)), 5)
    assert set(predictor.predict(3, index((0, 1)), 2)) == {4, 5}
    assert set(predictor.predict(3, index((2, 3)), 2)) == {0, 1}


def test_several_tokens_are_predicted_together() -> None:
    predictor = CoactivationPredictor(LAYERS)
    run(predictor, index((0, 1), (2, 3)), index((4, 5), (0, 1)), 5)
    assert set(predictor.predict(3, index((0, 1), (2, 3)), 4)) == {0, 1, 4, 5}


def test_the_likelier_comes_first() -> None:
    predictor = CoactivationPredictor(LAYERS)
    run(predictor, index((0, 1)), index((4, 5)), 2)
    run(predictor, index((0, 1)), index((4, 3)), 1)
    assert predictor.predict(3, index((0, 1)), 3) == [4, 5, 3]


def test_an_expert_never_seen_is_followed_by_what_is_popular() -> None:
    predictor = CoactivationPredictor(LAYERS)
    run(predictor, index((0, 1)), index((4, 5)), 3)
    assert set(predictor.predict(3, index((6, 7)), 2)) == {4, 5}


def test_old_counts_are_forgotten() -> None:
    predictor = CoactivationPredictor(LAYERS)
    run(predictor, index((0, 1)), index((4, 5)), 4 * HALF_LIFE)
    run(predictor, index((0, 1)), index((2, 3)), HALF_LIFE + 10)
    assert set(predictor.predict(3, index((0, 1)), 2)) == {2, 3}


def test_counts_stay_finite_however_long_it_runs() -> None:
    predictor = CoactivationPredictor(LAYERS)
    run(predictor, index(*[(0, 1)] * 64), index(*[(4, 5)] * 64), 2 * HALF_LIFE)
    transition = predictor._transitions[3]
    assert transition._unit <= LARGEST_UNIT
    assert np.isfinite(transition._together).all()
    assert np.isfinite(transition.scores(index((0, 1)))).all()


def test_steps_of_unequal_size_are_not_paired() -> None:
    predictor = CoactivationPredictor(LAYERS)
    predictor.observe(5, index((1, 2)))
    predictor.observe(3, index((6, 7), (0, 1)))
    assert not predictor._transitions[5]._together.any()


def test_a_layer_that_was_left_out_breaks_the_chain() -> None:
    predictor = CoactivationPredictor({1: 4, 2: 4, 3: 4})
    predictor.observe(1, index((0, 1)))
    predictor.observe(3, index((2, 3)))
    assert not any(transition._together.any() for transition in predictor._transitions.values())


def test_an_interruption_breaks_the_chain() -> None:
    predictor = CoactivationPredictor(LAYERS)
    predictor.observe(3, index((0, 1)))
    predictor.interrupt()
    predictor.observe(5, index((4, 5)))
    assert not predictor._transitions[3]._together.any()


def test_no_expert_is_never_predicted() -> None:
    predictor = CoactivationPredictor(LAYERS)
    run(predictor, index((0, 8)), index((6, 6)), 3)
    assert sorted(predictor.predict(3, index((0, 8)), 6)) == list(range(6))


@pytest.mark.parametrize("count", [1, 6])
def test_as_many_as_asked_for(count: int) -> None:
    assert len(set(CoactivationPredictor(LAYERS).predict(3, index((0, 1)), count))) == count
