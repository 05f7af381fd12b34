"""Weights of the turns of a chat."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from server.api.core.requests.auto_request import turn_weights


@pytest.mark.parametrize(
    ("num_tokens", "weights"),
    [
        ([12], [1.0]),
        ([500, 12], [0.4, 1.0]),  # however long an earlier turn is
        ([12, 3], [0.4, 0.25]),  # a short turn leaves the choice to the turn before
        ([12, 12, 6], [0.16, 0.4, 0.5]),
    ],
)
def test_a_turn_counts_less_the_older_and_the_shorter_it_is(
    num_tokens: Sequence[int], weights: Sequence[float]
) -> None:
    assert turn_weights(num_tokens).tolist() == pytest.approx(weights)
