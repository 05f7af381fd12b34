"""A server's memory by part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Memory:
    """The memory of a server, and what takes it."""

    budget_bytes: int  # that the server and its children may take
    parts: Mapping[str, int]  # bytes of "trunk", "experts", "kv_cache", "step", "process" and "unaccounted"
    num_shrinks: int  # times that the experts gave memory up since the start
    num_grows: int  # times that they were given more
    reason: str  # of the last of these; empty before the first

    @property
    def total_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())
