"""Which experts sequences use, and what a step of some of them would cost. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

MEMORY_TOKENS = 64  # the past of a sequence weighs as much as so many tokens
PRIOR_TOKENS = 2  # and what all sequences use as much as so many
FORGETTING = 0.98  # of what steps cost, a step
LEAST_FIXED_SHARE = 0.1  # of a step's compute that does not depend on how many experts it touches


@dataclass
class ExpertUse:
    """How often a sequence lately chose each expert."""

    counts: Floats  # (layers, experts)
    num_tokens: float = 0.0

    def add(self, chosen: npt.NDArray[np.int64]) -> None:
        """Take note of what new tokens chose, ``(layers, tokens, k)``; choices beyond the last expert are none."""
        num_layers, num_tokens, _ = chosen.shape
        keep = (1 - 1 / MEMORY_TOKENS) ** num_tokens
        num_experts = self.counts.shape[1]
        flat = chosen.reshape(num_layers, -1) + np.arange(num_layers)[:, None] * num_experts
        found = np.bincount(flat[chosen.reshape(num_layers, -1) < num_experts], minlength=self.counts.size)
        weight = MEMORY_TOKENS * (1 - keep) / num_tokens  # of a token, so that all of them weigh as much as decays
        self.counts = keep * self.counts + np.float32(weight) * found.reshape(self.counts.shape).astype(np.float32)
        self.num_tokens = keep * self.num_tokens + weight * num_tokens


class WorkingSets:
    """What sequences would touch together, expected from what each used and what all use."""

    def __init__(self, experts_per_layer: Mapping[int, int]):
        self.layers = tuple(experts_per_layer)
        self._shape = (len(self.layers), max(experts_per_layer.values()))
        self._all = ExpertUse(np.zeros(self._shape, np.float32))

    def new_use(self) -> ExpertUse:
        return ExpertUse(np.zeros(self._shape, np.float32))

    def add(self, chosen: npt.NDArray[np.int64]) -> None:
        """Take note of what a step chose, whoever it was, ``(layers, tokens, k)``."""
        self._all.add(chosen)

    def chances(self, uses: Sequence[ExpertUse]) -> Floats:
        """How likely the next token of each sequence needs each expert, ``(sequences, layers, experts)``."""
        common = self._all.counts / max(self._all.num_tokens, 1.0)
        chances = [(use.counts + PRIOR_TOKENS * common) / (use.num_tokens + PRIOR_TOKENS) for use in uses]
        return np.clip(np.stack(chances), 0.0, 0.999)

    @staticmethod
    def by_affinity(chances: Floats, first: int) -> list[int]:
        """The sequences in the order of how much each shares with one of them, that one first."""
        shared = (np.minimum(chances, chances[first])).sum((1, 2))
        shared[first] = np.inf
        return [int(index) for index in np.argsort(-shared, kind="stable")]

    @staticmethod
    def expected(chances: Floats, slots: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
        """What a step of the first 1, 2, ... sequences touches, and what of that no cache could hold.

        Args:
            chances: ``(sequences, layers, experts)``.
            slots: of each layer ``(layers,)``, for its likeliest experts.

        Returns:
            Experts over all layers, ``(sequences,)`` each.
        """
        touched = 1 - np.exp(np.cumsum(np.log1p(-chances), 0))  # (sequences, layers, experts)
        ordered = -np.sort(-touched, axis=-1)
        is_out = np.arange(ordered.shape[-1]) >= slots[:, None]  # (layers, experts)
        return touched.sum((1, 2)), (ordered * is_out).sum((1, 2))


class StepCosts:
    """What decode steps cost: a fixed time, some for each expert that is touched, and more for each that is missing."""

    def __init__(self) -> None:
        self._sums = np.zeros(5)  # of 1, x, y, x * x, x * y over steps: experts touched and seconds of compute
        self._missed = self._stalled = 0.0
        self.stall_share = 0.0  # of the seconds of recent decode steps

    def add(self, seconds: float, stall_seconds: float, num_touched: int, num_missed: int) -> None:
        x, y = float(num_touched), max(seconds - stall_seconds, 0.0)
        self._sums = FORGETTING * self._sums + np.array([1.0, x, y, x * x, x * y])
        self._missed = FORGETTING * self._missed + num_missed
        self._stalled = FORGETTING * self._stalled + stall_seconds
        self.stall_share = self._stalled / max(self._stalled + self._sums[2], 1e-9)

    @property
    def seconds_a_miss(self) -> float:
        return self._stalled / self._missed if self._missed else 0.0

    def seconds(self, touched: Floats, missed: Floats) -> Floats:
        """Of steps that touch and miss so many experts."""
        weight, x, y, xx, xy = self._sums
        mean_x, mean_y = x / max(weight, 1e-9), y / max(weight, 1e-9)
        spread = xx / max(weight, 1e-9) - mean_x**2
        slope = mean_y / max(mean_x, 1.0)  # where all steps are alike
        if spread > (0.05 * mean_x) ** 2:
            slope = (xy / weight - mean_x * mean_y) / spread
        slope = np.clip(slope, 0.0, (1 - LEAST_FIXED_SHARE) * mean_y / max(mean_x, 1.0))
        fixed = mean_y - slope * mean_x
        return (fixed + slope * touched + self.seconds_a_miss * missed).astype(np.float32)
