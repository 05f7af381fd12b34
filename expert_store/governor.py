"""Whether prefetching pays: decided by trial, again and again."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median

WINDOW = 12  # decode steps that run the same way
SETTLING = 4  # of them, the first ones, which still feel the window before
MIN_PAIRS, MAX_PAIRS = 3, 8  # windows with and without, side by side, that make a trial
LIKENESS = 1.25  # windows whose steps differ more in look-ups are not compared
CLEAR = 0.05  # a trial ends early when all pairs agree and their median differs by this much
MARGIN = 0.01  # what prefetching has to gain, for it also wears the disk
FIRST_HOLD = 32  # steps before the first trial: caches fill, predictors learn
HOLD, MAX_HOLD = 1000, 4000  # steps between trials; doubled while the outcome stays the same


@dataclass(frozen=True)
class _Window:
    is_active: bool
    seconds: float  # of a step, median
    lookups: float  # of a step, median
    seconds_per_lookup: float  # median


@dataclass
class _Trial:
    """Windows without, with, with, without, without, ...: a drift hits both alike."""

    windows: list[_Window] = field(default_factory=list)
    steps: list[tuple[float, int]] = field(default_factory=list)  # seconds and look-ups, of the window that runs

    @property
    def is_active(self) -> bool:
        return len(self.windows) % 4 in (1, 2)

    def record(self, seconds: float, lookups: int) -> None:
        self.steps.append((seconds, lookups))
        if len(self.steps) < WINDOW:
            return
        steps = self.steps[SETTLING:]
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
        """Logarithm of time without over time with, of each pair of windows that can be compared."""
        gains = []
        for first, second in zip(self.windows[::2], self.windows[1::2], strict=False):
            few, many = sorted((first.lookups, second.lookups))
            if many <= LIKENESS * few:
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
        return len(gains) >= MIN_PAIRS and agree and abs(median(gains)) > CLEAR

    def seconds(self, is_active: bool) -> float | None:
        found = [window.seconds for window in self.windows if window.is_active is is_active]
        return median(found) if found else None


class Governor:
    """Switches prefetching on while it makes steps faster.

    Every so often a trial alternates short windows of steps with and without and compares seconds a look-up in
    neighbouring windows, by medians; the better way is kept until the next trial. Look-ups, because batches change in
    size; neighbours, because everything else changes too. A trial's losing half is the whole cost: some 100 steps in
    1,000 to 4,000 at most, 36 where the loss is clear.
    """

    def __init__(self) -> None:
        self._choice = False
        self._hold = HOLD
        self._left = FIRST_HOLD  # steps until the next trial
        self._trial: _Trial | None = None
        self.seconds_with: float | None = None  # a step, in the last trial
        self.seconds_without: float | None = None

    @property
    def is_active(self) -> bool:
        """Whether to prefetch in the step that comes."""
        return self._trial.is_active if self._trial else self._choice

    def record(self, seconds: float, lookups: int) -> None:
        """A decode step ended.

        Args:
            seconds: what it took, more than 0.
            lookups: experts that it asked for; a step without any is not counted.
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
        choice = median(gains) > MARGIN if gains else self._choice
        self._hold = min(2 * self._hold, MAX_HOLD) if choice is self._choice else HOLD
        self._choice, self._left = choice, self._hold
        self.seconds_with, self.seconds_without = trial.seconds(is_active=True), trial.seconds(is_active=False)
