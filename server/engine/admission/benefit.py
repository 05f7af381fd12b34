"""Measured rates of grouped and joint decoding, and the decision whether grouping pays. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MIN_MEASURED_GAIN = 1.05  # tokens a second of grouped decoding over those of joint decoding
MAX_LOSS = 0.8  # the same, after the first slices of a round: others may be faster
ROUNDS_BETWEEN_COMPARISONS = 8
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 15.0, 600.0  # without groups, after grouping did not pay
DECAY = 0.95  # factor on the joint rate's sums at each step

Decision = Literal["continue", "compare", "stop"]


@dataclass
class Rate:
    """Tokens and seconds of recent decode steps."""

    num_tokens: float = 0.0
    seconds: float = 0.0

    def add(self, num_tokens: int, seconds: float, decay: float = 1.0) -> None:
        self.num_tokens, self.seconds = decay * self.num_tokens + num_tokens, decay * self.seconds + seconds

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.seconds if self.seconds else 0.0


class GroupingBenefit:
    """Compares the rate of decode groups with the rate of all sequences together.

    A round is one slice of every sequence. After each round grouping continues, stops for a pause that doubles each
    time, or stops for a comparison with joint decoding.
    """

    def __init__(self) -> None:
        self._joint, self._grouped = Rate(), Rate()
        self._num_rounds = 0
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._retry_at = 0.0

    def record(self, num_tokens: int, seconds: float, *, is_grouped: bool) -> None:
        """Add a decode step."""
        if is_grouped:
            self._grouped.add(num_tokens, seconds)
        else:
            self._joint.add(num_tokens, seconds, DECAY)

    def may_group(self, now: float) -> bool:
        """Return whether the pause is over."""
        return now >= self._retry_at

    def begin_round(self) -> None:
        self._grouped = Rate()

    @property
    def is_loss(self) -> bool:
        """True if the slices of this round were so slow that no further one should follow."""
        return self._grouped.tokens_per_second < MAX_LOSS * self._joint.tokens_per_second

    def end_round(self, now: float) -> Decision:
        """Decide what follows a round."""
        if self._grouped.tokens_per_second < MIN_MEASURED_GAIN * self._joint.tokens_per_second:
            self._retry_at = now + self._pause_seconds
            self._pause_seconds = min(2 * self._pause_seconds, MAX_PAUSE_SECONDS)
            return "stop"
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._num_rounds += 1
        if self._num_rounds % ROUNDS_BETWEEN_COMPARISONS:
            return "continue"
        self._joint = Rate()
        return "compare"
