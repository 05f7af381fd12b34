"""Governor: switches prefetching on or off by repeated trials."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median

WINDOW = 12  # consecutive decode steps with prefetching, or without
WARM_UP = 4  # first steps of a window, which are not measured as the window before still affects them
MIN_PAIRS, MAX_PAIRS = 3, 8  # pairs of neighbouring windows, one with and one without, in a trial
MAX_LOOKUP_RATIO = 1.25  # windows whose steps differ more in look-ups are not compared
CLEAR_GAIN = 0.05  # a trial ends early when all pairs agree and their median gain or loss is larger
MIN_GAIN = 0.01  # gain that prefetching must have, as it also wears the disk
STEPS_BEFORE_FIRST_TRIAL = 32  # while caches fill and predictors learn
INTERVAL, MAX_INTERVAL = 1000, 4000  # steps between trials; doubled while the outcome stays the same


@dataclass(frozen=True)
class _Window:
    is_active: bool
    seconds: float  # per step, median
    lookups: float  # per step, median
    seconds_per_lookup: float  # median


@dataclass
class _Trial:
    """Windows without, with, with, without, without, ...: a drift affects both alike."""

    windows: list[_Window] = field(default_factory=list)
    steps: list[tuple[float, int]] = field(
        default_factory=list
    )  # seconds and look-ups of each step of the current window

    @property
    def is_active(self) -> bool:
        return len(self.windows) % 4 in (1, 2)

    def record(self, seconds: float, lookups: int) -> None:
        self.steps.append((seconds, lookups))
        if len(self.steps) < WINDOW:
            return
        steps = self.steps[WARM_UP:]
        self.windows.append(
            _Window(
                self.is_active,
                median(seconds for seconds, _ in steps),
                median(lookups for _, lookups in steps),
                median(seconds / lookups for seconds, lookups in steps),
            )
        )
        self.steps = []

    @property
    def gains(self) -> list[float]:
        """Logarithm of time without over time with prefetching, for each pair of windows that can be compared."""
        gains = []
        for first, second in zip(self.windows[::2], self.windows[1::2], strict=False):
            few, many = sorted((first.lookups, second.lookups))
            if many <= MAX_LOOKUP_RATIO * few:
                gain = math.log(first.seconds_per_lookup / second.seconds_per_lookup)
                gains.append(gain if second.is_active else -gain)
        return gains

    @property
    def is_over(self) -> bool:
        if len(self.windows) % 2 or self.steps:
            return False
        gains = self.gains
        if len(gains) >= MAX_PAIRS or len(self.windows) >= 4 * MAX_PAIRS:
            return True
        agree = all(gain > 0 for gain in gains) or all(gain < 0 for gain in gains)
        return len(gains) >= MIN_PAIRS and agree and abs(median(gains)) > CLEAR_GAIN

    def seconds(self, is_active: bool) -> float | None:
        found = [window.seconds for window in self.windows if window.is_active is is_active]
        return median(found) if found else None


class Governor:
    """Switches prefetching on while it makes steps faster.

    Every so often a trial alternates short windows of steps with and without prefetching and compares their median
    seconds per look-up; the better choice is kept until the next trial. Times are per look-up because batches change in
    size, and of neighbouring windows because everything else changes too. The only cost is the losing half of a trial:
    some 100 steps in 1,000 to 4,000 at most, 36 where the loss is clear.

    Args:
        begins_active: prefetch before the first trial.
    """

    def __init__(self, *, begins_active: bool = False) -> None:
        self._choice = begins_active
        self._interval = INTERVAL
        self._left = STEPS_BEFORE_FIRST_TRIAL  # steps until the next trial
        self._trial: _Trial | None = None
        self.seconds_with: float | None = None  # per step, in the last trial
        self.seconds_without: float | None = None

    @property
    def is_active(self) -> bool:
        """True if the next step should prefetch."""
        return self._trial.is_active if self._trial else self._choice

    def record(self, seconds: float, lookups: int) -> None:
        """Record a decode step that ended.

        Args:
            seconds: duration, more than 0.
            lookups: number of experts that it requested; a step without any is not counted.
        """
        if lookups == 0:
            return
        if self._trial is None:
            self._left -= 1
            if self._left <= 0:
                self._trial = _Trial()
            return
        self._trial.record(seconds, lookups)
        if self._trial.is_over:
            self._decide(self._trial)
            self._trial = None

    def _decide(self, trial: _Trial) -> None:
        gains = trial.gains
        choice = median(gains) > MIN_GAIN if gains else self._choice
        self._interval = min(2 * self._interval, MAX_INTERVAL) if choice is self._choice else INTERVAL
        self._choice, self._left = choice, self._interval
        self.seconds_with, self.seconds_without = trial.seconds(is_active=True), trial.seconds(is_active=False)
