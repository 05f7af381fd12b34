"""NamedFactors: the numbers that a measured factor may be."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Self

from server.model.blocks.errors import UnsupportedLayerError

ROUNDING = 1e-5  # relative error of a factor that was measured in float32


@dataclass(frozen=True)
class NamedFactors:
    """The factors that a config names: 1, 0.5 as of an average, its numbers, their inverses, the hidden size's root.

    Args:
        numbers: that a factor may be.
        are_all: whether no factor may be another number.
    """

    numbers: Sequence[float]
    are_all: bool = False

    @classmethod
    def of(cls, config: Any, without: Collection[str] = ()) -> Self:
        """Return the factors that a config names.

        Args:
            config: of the text.
            without: keys whose values are not the model's own; a factor must be another number then.
        """
        known = {key: value for key, value in vars(config).items() if key not in without}
        numbers = [value for value in known.values() if isinstance(value, int | float) and 0 < value < math.inf]
        roots = [math.sqrt(known["hidden_size"])] if "hidden_size" in known else []
        return cls([1.0, 0.5, *map(float, numbers), *(1 / number for number in numbers), *roots], bool(without))

    def nearest(self, measured: float) -> float:
        """Return a named factor if it is the measured one but for rounding; else the measured factor itself.

        Raises:
            UnsupportedLayerError: none is, and a factor can't be another number.
        """
        found = min(self.numbers, key=lambda number: abs(number - measured))
        is_near = abs(found - measured) <= ROUNDING * abs(measured)
        return self.exact(measured) if self.are_all else found if is_near else measured

    def exact(self, measured: float) -> float:
        """Return the named factor that is the measured one but for rounding.

        Raises:
            UnsupportedLayerError: none is, or several are.
        """
        found = {number for number in self.numbers if abs(number - measured) <= ROUNDING * abs(measured)}
        if len(found) != 1:
            few = "which its config does not name" if not found else f"which may be any of {sorted(found)}"
            raise UnsupportedLayerError(f"its layers multiply results by {measured:.4g}, {few}")
        return found.pop()
