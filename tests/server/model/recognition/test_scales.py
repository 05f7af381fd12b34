"""Measured factors are taken for the numbers of a config that they are near to, and for no others."""

from __future__ import annotations

from math import sqrt
from types import SimpleNamespace

import pytest

from server.model.blocks.errors import UnsupportedLayerError
from server.model.recognition.scales import NamedFactors

CONFIG = SimpleNamespace(
    hidden_size=2816,
    embedding_multiplier=1.03,
    logits_scaling=0.97,
    routed_scaling_factor=2.5,
    use_cache=True,
    name="x",
)
FACTORS = NamedFactors.of(CONFIG)
OF_NARROW_TWIN = NamedFactors.of(CONFIG, without={"hidden_size"})


@pytest.mark.parametrize("exact", [1.0, 0.5, 1.03, 2.5, 1 / 0.97, sqrt(2816)])
@pytest.mark.parametrize("rounding", [-1e-6, 0.0, 1e-6])
def test_a_factor_that_a_config_names_is_exact(exact: float, rounding: float) -> None:
    assert FACTORS.nearest(exact * (1 + rounding)) == exact


@pytest.mark.parametrize("measured", [0.99, 1.01, 1.02, 2.4, 53.0, -1.0, 0.0])
def test_a_factor_that_no_name_is_near_to_stays_as_measured(measured: float) -> None:
    assert FACTORS.nearest(measured) == measured


@pytest.mark.parametrize("measured", [1.02, sqrt(2816), 1 / 2816])
def test_a_narrow_twin_shows_no_factor_of_its_widths(measured: float) -> None:
    with pytest.raises(UnsupportedLayerError, match="does not name"):
        OF_NARROW_TWIN.nearest(measured)


def test_a_factor_of_results_that_is_not_named_is_refused() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"multiply results by 1.02, which its config does not name"):
        FACTORS.exact(1.02)


def test_a_factor_that_may_be_one_of_two_is_refused() -> None:
    factors = NamedFactors.of(SimpleNamespace(hidden_size=2816, factor=1.000001))
    with pytest.raises(UnsupportedLayerError, match="may be any of"):
        factors.exact(1.0000005)
