"""Measured factors are taken for the numbers of a config that they are near to, and for no others."""

from __future__ import annotations

from math import sqrt
from types import SimpleNamespace

import pytest
import torch

from server.model.blocks.errors import UnsupportedLayerError
from server.model.native_layers.scales import MeasuredFactor, nearest_named

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


def rounded_rows(factor: float, noise: float = 0.004) -> MeasuredFactor:
    """Measure a factor on rows with errors of that size."""
    random = torch.Generator().manual_seed(0)
    rows, errors = (torch.randn((17, 32), generator=random) for _ in range(2))
    return MeasuredFactor.between(rows, factor * rows + noise * errors)


@pytest.mark.parametrize("exact", [1.0, 0.5, 1.03, 2.5])
def test_a_factor_measured_on_rounded_rows_is_exact(exact: float) -> None:
    assert rounded_rows(exact).exact(CONFIG, 4e-4) == exact


def test_a_factor_may_be_many_standard_errors_of_few_rows_off() -> None:
    assert MeasuredFactor(0.9973, 4.7e-4).exact(CONFIG, 4e-4) == 1.0  # layer 18 of 24 of a random gpt_oss in bfloat16


@pytest.mark.parametrize("measured", [rounded_rows(1.02), rounded_rows(1.0, noise=1.0)])
def test_a_factor_that_is_not_named_or_not_shown_is_refused(measured: MeasuredFactor) -> None:
    with pytest.raises(UnsupportedLayerError, match=r"results of (its )?experts"):
        measured.exact(CONFIG, 4e-4)


def test_a_factor_that_may_be_one_of_two_is_refused() -> None:
    config = SimpleNamespace(hidden_size=2816, factor=1.0002)
    with pytest.raises(UnsupportedLayerError, match="may be any of"):
        MeasuredFactor(1.0001, 1e-6).exact(config, 4e-4)
