"""Memory use by part of the budget, and how often it was shared out anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

from .machine import own_bytes

Part = Literal["trunk", "experts", "kv_cache", "step", "process", "unaccounted"]
PARTS: tuple[Part, ...] = get_args(Part)

# The server took more than planned; others took the machine's or the group's memory; threads waited for memory; memory
# was left for a while.
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
    """Counts how often, and why, memory was taken from the experts or given back to them since the start."""

    counts: Counter[tuple[Action, Cause]] = field(default_factory=Counter)
    reason: str = ""  # of the last one, for people

    @property
    def num_shrinks(self) -> int:
        return self._num_of("shrink")

    @property
    def num_grows(self) -> int:
        return self._num_of("grow")

    def _num_of(self, action: Action) -> int:
        # By the keys that there can be: the watcher's thread may add one meanwhile.
        return sum(self.counts[each] for each in ADJUSTMENTS if each[0] == action)


@dataclass(frozen=True)
class MemoryUsage:
    """The memory of one server by part; of the host, also where compute runs on a device.

    Args:
        budget_bytes: all that the process and its children may take (``--memory``).
        trunk_bytes: of the weights that are always resident.
        process_bytes: of everything else when the trunk had been loaded, before there were experts or a KV cache.
        experts: tells the bytes of the slots that hold an expert now.
        kv_cache: tells the bytes of KV cache and states that have memory now.
        step: tells the bytes that are set aside for the tensors of a step.
        expert_budget: tells the bytes that experts may take now.
        kv_budget: tells the bytes that the KV cache may take now.
    """

    budget_bytes: int
    trunk_bytes: int
    process_bytes: int
    experts: Callable[[], int]
    kv_cache: Callable[[], int]
    step: Callable[[], int]
    expert_budget: Callable[[], int]
    kv_budget: Callable[[], int]
    adjustments: Adjustments = field(default_factory=Adjustments)

    def by_part(self) -> dict[Part, int]:
        """Bytes of each part.

        ``step`` is a bound, of which a step that runs now takes a part. ``unaccounted`` is what the process and its
        children take beyond all other parts, and 0 while they take less.
        """
        parts: dict[Part, int] = {
            "trunk": self.trunk_bytes,
            "experts": self.experts(),
            "kv_cache": self.kv_cache(),
            "step": self.step(),
            "process": self.process_bytes,
        }
        parts["unaccounted"] = max(0, own_bytes() - sum(parts.values()))
        return parts
