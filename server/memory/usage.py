"""Memory use by part of the budget, and counts of its adjustments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

from server.memory.machine import own_bytes

Part = Literal["trunk", "experts", "adapters", "kv_cache", "step", "requests", "process", "unaccounted"]
PARTS: tuple[Part, ...] = get_args(Part)

# process: the server used more than planned. others: other processes used the machine's or the group's memory.
# pressure: threads waited for memory. calm: memory was free for a while.
Cause = Literal["process", "others", "pressure", "calm"]
Action = Literal["shrink", "grow"]
ADJUSTMENTS: tuple[tuple[Action, Cause], ...] = (
    ("shrink", "process"),
    ("shrink", "others"),
    ("shrink", "pressure"),
    ("grow", "calm"),
)


@dataclass
class Adjustments:
    """Counts how often experts shrank or grew since the start, by cause."""

    counts: Counter[tuple[Action, Cause]] = field(default_factory=Counter)
    reason: str = ""  # description of the last adjustment

    @property
    def num_shrinks(self) -> int:
        return self._num_of("shrink")

    @property
    def num_grows(self) -> int:
        return self._num_of("grow")

    def _num_of(self, action: Action) -> int:
        # Iterate over all possible keys, since the watcher's thread may add one in the meantime.
        return sum(self.counts[each] for each in ADJUSTMENTS if each[0] == action)


@dataclass(frozen=True)
class MemoryUsage:
    """Host memory of a server by part, also if it computes on a device.

    Args:
        budget_bytes: memory that the process and its children may use (``--memory``).
        trunk_bytes: weights that are always resident.
        process_bytes: memory of the process without the trunk, before experts and KV cache were allocated.
        experts: returns the bytes of slots that hold an expert now.
        kv_cache: returns the bytes of KV cache and states that are allocated now.
        step: returns the bytes reserved for the tensors of a step.
        expert_budget: returns the bytes that experts may use now.
        kv_budget: returns the bytes that the KV cache may use now.
        adapters: returns the bytes of slots that hold a page of an adapter now.
        requests: returns the bytes that requests hold beside their KV cache.
        growth_bytes: bytes that the process was planned to grow by while it answers its first requests.
    """

    budget_bytes: int
    trunk_bytes: int
    process_bytes: int
    experts: Callable[[], int]
    kv_cache: Callable[[], int]
    step: Callable[[], int]
    expert_budget: Callable[[], int]
    kv_budget: Callable[[], int]
    adapters: Callable[[], int] = lambda: 0
    requests: Callable[[], int] = lambda: 0
    growth_bytes: int = 0
    adjustments: Adjustments = field(default_factory=Adjustments)

    def by_part(self) -> dict[Part, int]:
        """Return the bytes of each part.

        ``step`` is an upper bound. ``process`` includes its planned growth, as far as it has come: what libraries
        allocate at first use and keep. ``unaccounted`` is what the process and its children use beyond all that.
        """
        parts: dict[Part, int] = {
            "trunk": self.trunk_bytes,
            "experts": self.experts(),
            "adapters": self.adapters(),
            "kv_cache": self.kv_cache(),
            "step": self.step(),
            "requests": self.requests(),
            "process": self.process_bytes,
        }
        beyond = max(0, own_bytes() - sum(parts.values()))
        growth = min(beyond, self.growth_bytes)
        parts["process"] += growth
        parts["unaccounted"] = beyond - growth
        return parts
