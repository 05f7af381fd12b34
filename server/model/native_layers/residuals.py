"""Finds what a layer adds the results of its mixer and of its feed-forward part to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from server.model.blocks.capture import LayerCapture
from server.model.blocks.mixer import relative_error
from server.model.blocks.tolerances import TOLERANCES
from server.model.native_layers.scales import ROUNDING, nearest_named


@dataclass(frozen=True)
class Residuals:
    """Factors of normed rows in the place of the hidden states; 0 where results are added to the hidden states."""

    mixer: float = 0.0
    inner: float = 0.0
    scale: float = 1.0  # of the mixer's results


@dataclass(frozen=True)
class ResidualRows:
    """Rows of one call of a layer."""

    normed: torch.Tensor  # the mixer's
    mixed: torch.Tensor  # its results
    inner_given: torch.Tensor  # what the norm before the feed-forward part takes
    inner_normed: torch.Tensor


def find_residuals(rows: ResidualRows, captured: LayerCapture, config: Any, scale: float) -> Residuals:
    """Return the factors of a layer whose experts add nothing.

    Args:
        captured: a call of the layer.
        config: of the text, which names factors.
        scale: of the mixer's results, where these are added to the hidden states.
    """
    dtype = rows.mixed.dtype
    normed, mixed, given = rows.normed.double(), rows.mixed.double(), rows.inner_given.double()
    usual = captured.given.double() + scale * mixed
    if relative_error(usual, given) < TOLERANCES[dtype]:
        return Residuals(scale=scale)
    columns = torch.stack([normed.flatten(), mixed.flatten()], 1)
    factors = torch.linalg.lstsq(columns, given.flatten().unsqueeze(1)).solution.flatten()
    if not relative_error((columns @ factors).view_as(given), given) < TOLERANCES[dtype]:
        return Residuals(scale=scale)
    inner = rows.inner_normed.double()
    kept = (inner * captured.output).sum() / inner.square().sum()
    exact = [nearest_named(float(each), config, 10 * ROUNDING[dtype]) for each in (factors[0], kept, factors[1])]
    return Residuals(*exact)
