"""Counters and reports of the store."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from expert_store.entry import TierName

Phase = Literal["prefill", "decode"]
# failing: a thread has died, or a read does not return; files_changed: a file was written to since it was opened
StoreHealth = Literal["ok", "files_changed", "failing"]
PHASES: tuple[Phase, ...] = ("prefill", "decode")
Transfer = tuple[str, str]  # source and target tier

PREFETCH_OUTCOMES = ("used", "late", "wasted")
# Upper bounds in seconds of the buckets of load times; one more bucket counts loads that took longer.
LOAD_SECONDS_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


@dataclass
class LoadStatistics:
    """Loads of experts from one tier into another."""

    nbytes: int = 0
    seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(LOAD_SECONDS_BUCKETS) + 1))

    def count(self, nbytes: int, seconds: float) -> None:
        self.nbytes += nbytes
        self.seconds += seconds
        self.buckets[bisect_left(LOAD_SECONDS_BUCKETS, seconds)] += 1

    def less(self, part: LoadStatistics) -> LoadStatistics:
        """Return the loads that are not in a part of them."""
        buckets = [all_loads - other for all_loads, other in zip(self.buckets, part.buckets, strict=True)]
        return LoadStatistics(self.nbytes - part.nbytes, self.seconds - part.seconds, buckets)


@dataclass
class StoreStatistics:
    """Counters since the start. The store writes them under its lock; readers get a copy.

    ``tokens`` is ``(layers, experts)``: rows that each expert was run on, MoE layers in their order.
    """

    tokens: npt.NDArray[np.int64]
    lookups: Counter[tuple[str, Phase]] = field(default_factory=Counter)  # by the tier where the expert was found
    remote_lookups: Counter[Phase] = field(default_factory=Counter)  # those of "disk" that were not on a disk
    remote_loads: LoadStatistics = field(default_factory=LoadStatistics)  # of ("disk", "host"), those not from a disk
    stall_seconds: dict[Phase, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    loads: dict[Transfer, LoadStatistics] = field(default_factory=dict)
    load_failures: int = 0
    host_computed: int = 0  # look-ups whose experts were computed from host memory, for lack of a slot on the device
    evictions: dict[str, int] = field(default_factory=dict)  # by tier
    prefetches: Counter[str] = field(default_factory=Counter)  # by outcome
    variant_tokens: Counter[str] = field(default_factory=Counter)  # rows that the experts of a variant were run on

    def count_load(self, source: str, target: str, nbytes: int, seconds: float) -> None:
        self.loads.setdefault((source, target), LoadStatistics()).count(nbytes, seconds)

    @property
    def loaded_bytes(self) -> int:
        """Number of bytes read from disk."""
        return self.loads.get(("disk", "host"), LoadStatistics()).nbytes


@dataclass(frozen=True)
class TierReport:
    """One tier of the store as it is now."""

    name: TierName
    budget_bytes: int
    num_slots: int = 0
    slot_bytes: int = 0  # all slots together
    num_resident: int = 0
    resident_bytes: int = 0
    num_pinned: int = 0


@dataclass(frozen=True)
class HitRatios:
    """Hit ratio of some look-ups, 0 to 1, and the highest that replacement on demand could have had.

    Prefetching is not replacement on demand, so it may beat the optimum.
    """

    lookups: int
    realised: float
    optimal: float
