"""When compute waited for experts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stall:
    """A layer of a step waited until its experts were there."""

    layer: int
    started_at: float  # by ``time.monotonic``, as is the next
    ended_at: float
    seconds: float  # that it waited in between; else it computed with what was there already
    num_misses: int  # experts that were in no tier
    bytes_read: int  # from disk, of those
