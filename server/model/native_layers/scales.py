"""Finds the exact value of a factor that was measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import torch

from server.model.blocks.errors import UnsupportedLayerError

# Errors of a factor measured on many numbers, whose own roundings cancel out.
ROUNDING = {torch.float32: 1e-6, torch.float16: 1e-4, torch.bfloat16: 4e-4}
QUANTISED_ROUNDING = 1e-3  # the same where a layer's linear layers are quantised, which rounds their rows too
SURE = 5  # standard errors that must be small
FAR = 10  # standard errors that a factor may be off: they are from few rows, and many layers are measured
MOST_UNSURE = 0.015  # error of a factor that says nothing about it


@dataclass(frozen=True)
class MeasuredFactor:
    """The factor between two tables of rows, measured on all of their numbers."""

    value: float
    error: float  # standard error, from the differences that the factor leaves

    @classmethod
    def between(cls, given: torch.Tensor, wanted: torch.Tensor) -> Self:
        """Return the factor by which ``given`` comes nearest to ``wanted``, both ``(rows, numbers)``.

        Its error is from the sums of rows, as the numbers of a row may be off in the same direction.
        """
        given, wanted = given.double(), wanted.double()
        square = float(given.square().sum().clamp_min(1e-30))
        value = float((given * wanted).sum()) / square
        by_row = ((wanted - value * given) * given).sum(1)
        return cls(value, float(by_row.norm()) / square)

    def exact(self, config: Any, rounding: float) -> float:
        """Return 1 or what a config names, if that is the factor.

        Args:
            config: of the text.
            rounding: the least relative error.

        Raises:
            UnsupportedLayerError: it is none of these, or could be any.
        """
        error = max(SURE * self.error, rounding * abs(self.value))
        if not error <= MOST_UNSURE * abs(self.value):
            raise UnsupportedLayerError(
                f"the results of its experts are too small to show their factor ({self.value:.4g} +- {error:.2g})"
            )
        far = min(max(FAR * self.error, error), MOST_UNSURE * abs(self.value))
        named = named_factors(config)
        found = {number for number in named if abs(number - self.value) <= error}
        found = found or {number for number in named if abs(number - self.value) <= far}
        if len(found) != 1:
            few = "which its config does not name" if not found else f"which may be any of {sorted(found)}"
            raise UnsupportedLayerError(f"its layers multiply the results of experts by {self.value:.4g}, {few}")
        return found.pop()


def nearest_named(measured: float, config: Any, rounding: float) -> float:
    """Return 1 or what a config names, if it is the measured factor but for rounding; else the measured factor itself.

    Args:
        config: of the text.
        rounding: relative error of the measured factor.
    """
    found = min(named_factors(config), key=lambda number: abs(number - measured))
    return found if abs(found - measured) <= rounding * abs(measured) else measured


def named_factors(config: Any) -> list[float]:
    """Return 1, 0.5 as of an average, the numbers of a config, their inverses, and the root of the hidden size."""
    numbers = [value for value in vars(config).values() if isinstance(value, int | float) and 0 < value < math.inf]
    return [1.0, 0.5, *map(float, numbers), *(1 / number for number in numbers), math.sqrt(config.hidden_size)]
