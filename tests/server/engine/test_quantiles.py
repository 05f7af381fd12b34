"""Quantiles of histograms."""

from __future__ import annotations

import pytest

from server.engine.quantiles import quantile

BOUNDS = (1.0, 2.0, 4.0)


@pytest.mark.parametrize(
    ("share", "cumulative", "expected"),
    [
        (0.5, [0, 0, 0, 0], None),
        (0.5, [10, 10, 10, 10], 0.5),  # interpolated from 0
        (0.5, [0, 4, 8, 8], 2.0),  # the end of a bucket
        (0.75, [0, 4, 8, 8], 3.0),
        (0.5, [0, 0, 10, 10], 3.0),  # past empty buckets
        (0.99, [1, 2, 3, 100], 4.0),  # no bucket has an end
    ],
)
def test_a_quantile_is_that_of_prometheus(share: float, cumulative: list[int], expected: float | None) -> None:
    assert quantile(share, BOUNDS, cumulative) == expected
