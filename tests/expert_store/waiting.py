"""Waiting until a store is idle."""

from __future__ import annotations

import threading

import torch

from expert_store import ExpertStore

TIMEOUT = 30


class _Marker:
    """A copy of no bytes that signals its end."""

    def __init__(self, over: threading.Event):
        self.source = self.target = torch.empty(0, dtype=torch.uint8)
        self.after = self.prepare = None
        self.on_queued = lambda event: None
        self.on_done = lambda error: over.set()


def wait_until_idle(store: ExpertStore) -> None:
    """Wait until no read is under way and the copier has ended all copies."""
    state = store._state
    while any(
        entry.state.name == "LOADING"
        for pool in state.pools
        for _, tier in pool.tiers
        for entry in list(tier._entries.values())
    ):
        threading.Event().wait(0.0005)
    if state._resources.copier is not None:
        over = threading.Event()
        state._resources.copier._jobs.put(_Marker(over))  # type: ignore[arg-type]
        assert over.wait(TIMEOUT)
