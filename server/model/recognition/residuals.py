"""Finds what a layer adds the results of its mixer and of its feed-forward part to."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from server.model.blocks.capture import LayerCapture
from server.model.blocks.mixer import relative_error
from server.model.blocks.tolerances import TOLERANCE
from server.model.recognition.scales import ROUNDING, NamedFactors

CLEAR = 0.5  # share of the error of the usual sum up to which another one explains a layer's rows better


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


def find_residuals(
    rows: ResidualRows, captured: LayerCapture, factors: NamedFactors, scale: float, *, is_usual: bool = True
) -> Residuals:
    """Return the factors of a layer whose experts add nothing.

    Args:
        captured: a call of the layer.
        factors: that the model's config names.
        scale: of the mixer's results, where these are added to the hidden states.
        is_usual: whether layers before add results to the hidden states, which decides where rows show no difference.
    """
    normed, mixed, inner = rows.normed.double(), rows.mixed.double(), rows.inner_normed.double()
    given, output = rows.inner_given.double(), captured.output.double()

    def is_clear(error: float, usual: float) -> bool:
        is_better = usual > ROUNDING and error < CLEAR * usual
        return error < TOLERANCE and (is_better or not is_usual)

    columns = torch.stack([normed.flatten(), mixed.flatten()], 1)
    found = torch.linalg.lstsq(columns, given.flatten().unsqueeze(1)).solution.flatten()
    error = relative_error((columns @ found).view_as(given), given)
    if not is_clear(error, relative_error(captured.given + scale * mixed, given)):
        found = torch.tensor([0.0, scale])
    kept = (inner * output).sum() / inner.square().sum()
    if not is_clear(relative_error(kept * inner, output), relative_error(given, output)):
        kept = torch.tensor(0.0)
    exact = [factors.nearest(float(each)) if float(each) else 0.0 for each in (found[0], kept, found[1])]
    return Residuals(*exact)
