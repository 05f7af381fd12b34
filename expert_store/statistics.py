"""What the store counts."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

Phase = Literal["prefill", "decode"]
PHASES: tuple[Phase, ...] = ("prefill", "decode")

# Upper bounds in seconds of the buckets of load times; one more bucket holds what took longer.
LOAD_SECONDS_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


@dataclass
class StoreStatistics:
    """Counters since the start; written under the store's lock, read by taking a copy.

    ``tokens`` is ``(layers, experts)``: rows that each expert was run on, MoE layers in their order.
    """

    tokens: npt.NDArray[np.int64]
    lookups: dict[tuple[str, Phase], int] = field(default_factory=dict)  # by tier where it was found
    stall_seconds: dict[Phase, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    load_failures: int = 0
    evictions: int = 0
    loaded_bytes: int = 0
    load_seconds: float = 0.0
    load_buckets: list[int] = field(default_factory=lambda: [0] * (len(LOAD_SECONDS_BUCKETS) + 1))

    def count_lookup(self, tier: str, phase: Phase) -> None:
        self.lookups[tier, phase] = self.lookups.get((tier, phase), 0) + 1

    def count_load(self, nbytes: int, seconds: float) -> None:
        self.loaded_bytes += nbytes
        self.load_seconds += seconds
        self.load_buckets[bisect_left(LOAD_SECONDS_BUCKETS, seconds)] += 1
