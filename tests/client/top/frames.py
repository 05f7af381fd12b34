"""Frames of synthetic servers."""

from __future__ import annotations

from typing import Any

from client.experts import Tier
from client.frames import ExpertFrame, Rows
from client.memory import Memory

GIB = 1 << 30


def frame(residency: Rows, tokens: Rows | None = None, **others: Any) -> ExpertFrame:
    """Return a frame with the given residency, and tokens, 0 by default."""
    return ExpertFrame(
        **{
            "model": "tiny",
            "layers": tuple(range(len(residency))),
            "residency": residency,
            "tokens": tokens or tuple((0,) * len(row) for row in residency),
            "pinned": frozenset(),
            "tiers": {"host": Tier(4 * GIB, 8, 4 * GIB, 6, 3 * GIB, 1)},
            "hit_ratio": 0.5,
            "optimal_hit_ratio": 0.75,
            "stall_seconds": 0.0,
            "loaded_bytes": 0,
            "prompt_tokens": 0,
            "generation_tokens": 0,
            "num_requests_running": 0,
            "num_requests_waiting": 0,
            "kv_cache_usage": 0.25,
            "memory": Memory(8 * GIB, {"trunk": GIB, "experts": 3 * GIB}, 0, 0, ""),
            "balance": (),
            **others,
        }
    )
