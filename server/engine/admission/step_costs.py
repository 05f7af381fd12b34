"""Model of the cost of decode steps, fitted to measured steps. Torch-free."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

DECAY = 0.98  # factor on the sums at each step
MIN_FIXED_SHARE = 0.1  # part of a step's compute that does not depend on the number of experts it touches


class StepCosts:
    """Costs of decode steps: a fixed time, a time for each expert touched, and a time for each expert missing."""

    def __init__(self) -> None:
        self._sums = np.zeros(5)  # sums of 1, x, y, x * x, x * y over steps; x: experts touched, y: seconds of compute
        self._missed = self._stalled = 0.0
        self.stall_share = 0.0  # part of the seconds of recent decode steps

    def add(self, seconds: float, stall_seconds: float, num_touched: int, num_missed: int) -> None:
        """Add a measured step."""
        x, y = float(num_touched), max(seconds - stall_seconds, 0.0)
        self._sums = DECAY * self._sums + np.array([1.0, x, y, x * x, x * y])
        self._missed = DECAY * self._missed + num_missed
        self._stalled = DECAY * self._stalled + stall_seconds
        self.stall_share = self._stalled / max(self._stalled + self._sums[2], 1e-9)

    @property
    def seconds_per_miss(self) -> float:
        return self._stalled / self._missed if self._missed else 0.0

    def seconds(self, touched: Floats, missed: Floats) -> Floats:
        """Return the expected seconds of steps that touch and miss so many experts."""
        weight, x, y, xx, xy = self._sums
        mean_x, mean_y = x / max(weight, 1e-9), y / max(weight, 1e-9)
        spread = xx / max(weight, 1e-9) - mean_x**2
        slope = mean_y / max(mean_x, 1.0)  # if all steps touch equally many experts
        if spread > (0.05 * mean_x) ** 2:
            slope = (xy / weight - mean_x * mean_y) / spread
        slope = np.clip(slope, 0.0, (1 - MIN_FIXED_SHARE) * mean_y / max(mean_x, 1.0))
        fixed = mean_y - slope * mean_x
        return (fixed + slope * touched + self.seconds_per_miss * missed).astype(np.float32)
