"""Waiting for a store to come to rest."""

from __future__ import annotations

import threading

import torch

from expert_store import ExpertStore

TIMEOUT = 30


class _Marker:
    """A copy of nothing whose end is a sign."""

    def __init__(self, over: threading.Event):
        self.source = self.target = torch.empty(0, dtype=torch.uint8)
        self.after = None
        self.on_queued = lambda event: None
        self.on_done = lambda error: over.set()


def settle(store: ExpertStore) -> None:
    """Until no read is under way and the copier has told the end of all copies."""
    backstage = store._backstage
    while any(
        entry.state.name == "LOADING"
        for pool in backstage.pools
        for _, tier in pool.tiers
        for entry in list(tier._entries.values())
    ):
        threading.Event().wait(0.0005)
    if backstage._copier is not None:
        over = threading.Event()
        backstage._copier._jobs.put(_Marker(over))  # type: ignore[arg-type]
        assert over.wait(TIMEOUT)
