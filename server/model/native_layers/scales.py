"""Finds the exact value of a factor that was measured."""

from __future__ import annotations

import math
from typing import Any

import torch

# Errors of a factor measured on many numbers, whose own roundings cancel out.
ROUNDING = {torch.float32: 1e-6, torch.float16: 1e-4, torch.bfloat16: 4e-4}


def nearest_named(measured: float, config: Any, rounding: float) -> float:
    """Return 1 or what a config names, if it is the measured factor but for rounding; else the measured factor itself.

    A factor is a number of the config, its inverse, or the root of the hidden size.

    Args:
        config: of the text.
        rounding: relative error of the measured factor.
    """
    numbers = [value for value in vars(config).values() if isinstance(value, int | float) and 0 < value < math.inf]
    named = [float(number) for number in numbers] + [1 / number for number in numbers] + [math.sqrt(config.hidden_size)]
    found = min([1.0, *named], key=lambda number: abs(number - measured))
    return found if abs(found - measured) <= rounding * abs(measured) else measured
