"""Measured factors are taken for the numbers of a config that they are near to, and for no others."""

from __future__ import annotations

from math import sqrt
from types import SimpleNamespace

import pytest

from server.model.native_layers.scales import nearest_named

CONFIG = SimpleNamespace(
    hidden_size=2816,
    embedding_multiplier=1.03,
    logits_scaling=0.97,
    routed_scaling_factor=2.5,
    use_cache=True,
    name="x",
)


@pytest.mark.parametrize("exact", [1.0, 1.03, 2.5, 1 / 0.97, sqrt(2816)])
@pytest.mark.parametrize("rounding", [-1e-5, 0.0, 1e-5])
def test_a_factor_that_a_config_names_is_exact(exact: float, rounding: float) -> None:
    assert nearest_named(exact * (1 + rounding), CONFIG, 4e-4) == exact


@pytest.mark.parametrize("measured", [0.99, 1.01, 1.02, 2.4, 53.0, -1.0, 0.0])
def test_a_factor_that_no_name_is_near_to_stays_as_measured(measured: float) -> None:
    assert nearest_named(measured, CONFIG, 4e-4) == measured
