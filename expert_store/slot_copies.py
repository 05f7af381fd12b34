"""SlotCopies: copies between the slots of two tiers."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from expert_store.io.copier import CopyJob
from expert_store.io.device_memory import Event
from expert_store.resources import StoreResources


class SlotCopies:
    """Submits copies between device and host, and knows how many are under way. The store's lock guards it."""

    def __init__(self, resources: StoreResources):
        self._resources, self._lock = resources, resources.lock
        self._num_running = 0

    @property
    def is_idle(self) -> bool:
        """True while no copy is under way."""
        return not self._num_running

    def submit(
        self,
        source: torch.Tensor,
        target: torch.Tensor,
        after: Event,
        queued: Callable[[Event], None],
        done: Callable[[Exception | None, float], None],
        *,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        """Submit a copy; ``queued`` and ``done`` are called from the copier's thread, with the lock held.

        Args:
            after: the event before which the copy does not begin.
            prepare: called from that thread before the copy, without the lock.
        """
        assert self._resources.copier is not None
        started = time.perf_counter()

        def on_queued(event: Event) -> None:
            with self._lock:
                queued(event)
                self._lock.wake_waiters()

        def on_done(error: Exception | None) -> None:
            with self._lock:
                self._num_running -= 1
                done(error, time.perf_counter() - started)
                self._lock.wake_waiters()

        self._num_running += 1
        self._resources.copier.submit(CopyJob(source, target, after, on_queued, on_done, prepare))
