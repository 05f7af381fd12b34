"""Memory use of a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Memory:
    """Memory budget of a server, and memory use by part."""

    budget_bytes: int  # limit for the server and its child processes
    # Bytes of "trunk", "experts", "adapters", "kv_cache", "step", "requests", "process" and "unaccounted".
    parts: Mapping[str, int]
    num_shrinks: int  # times that expert memory shrank since the start
    num_grows: int  # times that expert memory grew
    reason: str  # reason of the last change; empty before the first

    @property
    def total_bytes(self) -> int:
        """Sum of all parts."""
        return sum(self.parts.values())
