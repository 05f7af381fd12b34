"""Lease: some experts of a layer, to compute with."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self

from .arena import Weights
from .backstage import Backstage
from .errors import ExpertLoadError
from .keys import ExpertKey
from .statistics import Phase
from .tier import Entry, State
from .trace import TracedLease


class Recorder(Protocol):
    """Is told of every lease; ``TraceWriter`` is one."""

    def record(self, layer: int, experts: Iterable[int], phase: Phase) -> None: ...


class Lease:
    """A context manager whose iteration yields ``(expert, weights)``, ready ones first.

    Every expert is yielded once, in an order that depends on what is resident. Weights may be used until the next
    expert is asked for, and while ``gives_back`` is False until the end of the lease. A lease of more experts than its
    layer's share of slots is served in waves: those that were found stay till its end, the others are given back when
    the next one is asked for.

    Raises (when entered or while iterating):
        ExpertLoadError: an expert could not be read; the message names it and says why.
        StoreClosedError: the store was closed meanwhile.
    """

    def __init__(
        self, backstage: Backstage, layer: int, rows: Mapping[int, int], phase: Phase, recorder: Recorder | None
    ):
        self._backstage, self._layer, self._rows, self._phase = backstage, layer, rows, phase
        self._recorder = recorder
        self._pool = backstage.pool_of[layer]
        self._held: list[Entry] = []
        self._ready: deque[Entry] = deque()  # of those that are held, and not yet yielded
        self._coming: list[Entry] = []
        self._wanted: deque[ExpertKey] = deque()  # no slot yet
        self.missed: Sequence[ExpertKey] = ()  # experts that were in no tier
        self.stall_seconds = 0.0  # of waiting for experts
        self.stalled_from = self.stalled_to = 0.0  # if it waited: when first, and when no more, by ``time.monotonic``

    @property
    def num_lookups(self) -> int:
        return len(self._rows)

    @property
    def gives_back(self) -> bool:
        """Whether asking for the next expert may take away the weights of those that came before."""
        return bool(self._wanted)

    def __enter__(self) -> Self:
        backstage, pool = self._backstage, self._pool
        keys = backstage.keys[self._layer]
        asked = [keys[expert] for expert in self._rows]
        record = TracedLease(self._layer, tuple(self._rows), self._phase)
        if self._recorder is not None:
            self._recorder.record(*record)
        with backstage.changed:
            backstage.refuse_quarantined(asked)
            backstage.count_tokens(self._layer, self._rows)
            # All that is there is leased before anything is evicted, or one expert here would push out another.
            for key in asked:
                entry = pool.top.lease(key)
                if entry is None:
                    self._wanted.append(key)
                    continue
                self._held.append(entry)
                is_ready = entry.state is State.READY
                (self._ready if is_ready else self._coming).append(entry)
                if entry.is_ahead:
                    backstage.count_ahead(entry, "used" if is_ready else "late")
            self.missed = backstage.count_lookups(record, self._ready)
            self._found = frozenset(self._held)
            self._most_held = pool.most_held(self._layer, len(asked), len(self._held))
            if self._wanted:
                self._fetch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        backstage, pool = self._backstage, self._pool
        last_use = pool.mark_use()
        with backstage.changed:
            for entry in self._held:
                pool.give_back(entry, last_use)
                if entry.state is State.LOADING and not entry.leases:
                    backstage.call_off(pool, entry)
            self._held.clear()
            self._wanted.clear()
            backstage.wake()

    def __iter__(self) -> Iterator[tuple[int, Weights]]:
        weights = self._pool.weights
        while True:
            while self._ready:
                entry = self._ready.popleft()
                yield entry.key.expert, weights(entry)
                if self._wanted and entry not in self._found:
                    self._give_back([entry])
            if not self._coming and not self._wanted:
                return
            self._wait()

    def _wait(self) -> None:
        """Until at least one more expert is ready."""
        backstage = self._backstage
        with backstage.changed:
            while True:
                self._fetch()
                self._sort()
                if self._ready:
                    return
                if not self._coming and self._held:  # every slot is in use: what was found has been used, and may go
                    self._give_back(list(self._held))
                    continue
                started = time.monotonic()
                backstage.wait()
                self.stalled_to = time.monotonic()
                self.stalled_from = self.stalled_from or started
                seconds = self.stalled_to - started
                self.stall_seconds += seconds
                backstage.statistics.stall_seconds[self._phase] += seconds

    def _sort(self) -> None:
        """Move what has arrived; the lock is held."""
        for entry in self._coming:
            if entry.state is State.FAILED:
                raise ExpertLoadError(entry.key, entry.error) from entry.error
        self._ready.extend(entry for entry in self._coming if entry.state is State.READY)
        self._coming = [entry for entry in self._coming if entry.state is State.LOADING]

    def _fetch(self) -> None:
        """Get slots for what is still to come, as far as there are any to take; another lease may have fetched it."""
        while self._wanted and len(self._held) < self._most_held:
            key = self._wanted[0]
            entry = self._pool.top.lease(key) or self._backstage.fetch(key)
            if entry is None:
                return
            self._held.append(entry)
            self._coming.append(entry)
            self._wanted.popleft()

    def _give_back(self, entries: Sequence[Entry]) -> None:
        """Before the end, so that others can come in their place."""
        last_use = self._pool.mark_use()
        with self._backstage.changed:
            for entry in entries:
                self._held.remove(entry)
                self._pool.give_back(entry, last_use)
            self._fetch()
            self._backstage.wake()
