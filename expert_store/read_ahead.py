"""ReadAheadLease: experts that a pass over a prompt will probably want at its next layer."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Self

from expert_store.entry import Entry, EntryState
from expert_store.io.reader import Priority
from expert_store.keys import ExpertKey
from expert_store.layout_pool import LayoutPool
from expert_store.store_state import StoreState


class ReadAheadLease:
    """A context manager that keeps experts of one layer, and reads those that are not there behind all demands.

    Nothing is counted as used, and nobody waits: whoever leases the experts finds them, or turns their reads into
    demands. Experts for which there is no slot are left out. At the end, reads that have not begun are cancelled.
    """

    def __init__(self, state: StoreState, keys: Iterable[ExpertKey]):
        self._state, self._keys = state, list(keys)
        self._held: list[tuple[LayoutPool, Entry]] = []

    def __enter__(self) -> Self:
        state = self._state
        with state.lock:
            for key in self._keys:
                if state.lock.is_closed or key in state.quarantined or not state.catalog.has(key):
                    continue
                pool = state.pool_of[key.layer]
                entry = pool.top.lease_without_use(key)
                if entry is None:
                    entry = pool.load(key, priority=Priority.PREFETCH, is_passing=True)
                if entry is None:
                    break
                self._held.append((pool, entry))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._state.lock:
            for pool, entry in self._held:
                pool.release(entry)
                if entry.state is EntryState.LOADING and not entry.leases:
                    pool.cancel_load(entry)
            self._held.clear()
            self._state.lock.wake_waiters()
