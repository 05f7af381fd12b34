"""The time that compute waited for experts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stall:
    """A layer of a step that had to wait for its experts."""

    layer: int
    started_at: float  # by ``time.monotonic``
    ended_at: float  # by ``time.monotonic``
    seconds: float  # time waited between the two; the rest went into experts that were there already
    num_misses: int  # experts that were in no tier
    bytes_read: int  # for the misses
