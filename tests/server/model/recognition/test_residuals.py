"""The rows of a call show what layers add the results of their parts to."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from server.model.blocks.capture import LayerCapture
from server.model.recognition.residuals import ResidualRows, Residuals, find_residuals
from server.model.recognition.scales import NamedFactors

FACTORS = NamedFactors.of(SimpleNamespace(hidden_size=32, mixer_factor=1.5, inner_factor=3.5))


def normed(rows: torch.Tensor) -> torch.Tensor:
    return rows * torch.rsqrt(rows.square().mean(1, keepdim=True) + 1e-6)


def found(given: torch.Tensor, residuals: Residuals, *, is_usual: bool = True) -> Residuals:
    """Return what is found for a layer without experts' results that adds to hidden states or to normed rows."""
    mixed = torch.randn(given.shape, generator=torch.Generator().manual_seed(1))
    inner_given = (normed(given) * residuals.mixer if residuals.mixer else given) + residuals.scale * mixed
    output = normed(inner_given) * residuals.inner if residuals.inner else inner_given
    rows = ResidualRows(normed(given), mixed, inner_given, normed(inner_given))
    captured = LayerCapture(given, output, None, None, given, given, None)
    return find_residuals(rows, captured, FACTORS, residuals.scale, is_usual=is_usual)


def rows() -> torch.Tensor:
    return torch.randn((17, 32), generator=torch.Generator().manual_seed(0)) * 3


def test_results_that_are_added_to_hidden_states_need_no_factors() -> None:
    usual = Residuals(scale=0.5)
    assert found(rows(), usual) == usual


def test_factors_of_normed_rows_are_those_that_a_config_names() -> None:
    other = Residuals(mixer=1.5, inner=3.5)
    assert found(rows(), other) == other


def test_rows_that_are_normed_already_are_taken_as_in_the_layers_before() -> None:
    given = normed(rows())
    assert found(given, Residuals(mixer=1.0)) == Residuals()
    assert found(given, Residuals(mixer=1.0), is_usual=False).mixer == 1.0
