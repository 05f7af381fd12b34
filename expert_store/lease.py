"""Lease: some experts of a layer, to compute with."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from .arena import Weights
from .backstage import Backstage
from .errors import ExpertLoadError
from .keys import ExpertKey
from .pool import Pool
from .statistics import Phase
from .tier import Entry, State


class Recorder(Protocol):
    """Is told of every lease; ``TraceWriter`` is one."""

    def record(self, layer: int, experts: Iterable[int], phase: Phase) -> None: ...


class ReadyExperts:
    """Some experts of a lease whose weights are there."""

    __slots__ = ("_entries", "_lease", "_pool", "keys")

    def __init__(self, lease: Lease, pool: Pool, entries: Sequence[Entry], keys: Sequence[ExpertKey]):
        self._lease, self._pool, self._entries = lease, pool, entries
        self.keys = keys

    def weights(self, index: int) -> Weights:
        """The tensors of ``keys[index]`` by parameter name: views of its slot."""
        return self._pool.weights(self._entries[index])

    @property
    def addresses(self) -> npt.NDArray[np.uint64]:
        """The address of each expert's slot, ``(keys,)``; ``ExpertLayout.offsets`` has the places of its tensors.

        Addresses are in the memory of the host, or of the device where there is a device tier.
        """
        return self._pool.addresses(self._entries)

    @property
    def gives_back(self) -> bool:
        """True while asking for the next batch may take these weights away; once False, it stays so."""
        return self._lease.gives_back


class Lease:
    """A context manager that holds experts of one layer and gives them out as they become ready.

    Every expert is given out once, in an order that depends on what is resident. Weights may be used until the next
    batch is asked for, and while ``gives_back`` is False until the end of the lease. The reads of all that is missing
    have begun, as far as there are slots, when the lease is entered. A lease of more experts than its layer's share of
    slots is served in waves: those that were found stay till its end, the others are given back when the next batch is
    asked for.

    Raises (when entered or while iterating):
        ExpertLoadError: an expert could not be read; the message names it and says why.
        StoreClosedError: the store was closed meanwhile.
        ValueError: the model has no such expert, or they are of several layers; nothing is leased then.
    """

    def __init__(self, backstage: Backstage, rows: Mapping[ExpertKey, int], phase: Phase, recorder: Recorder | None):
        self._backstage, self._rows, self._phase = backstage, rows, phase
        self._recorder = recorder
        self._held: list[Entry] = []
        self._ready: list[Entry] = []  # of those that are held, and not yet given out
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
        """True while asking for the next batch may take away the weights of earlier ones."""
        return bool(self._wanted)

    def __enter__(self) -> Self:
        backstage, asked = self._backstage, tuple(self._rows)
        if not asked:
            return self
        layer = backstage.layer_of(asked)
        self._pool = pool = backstage.pool_of[layer]
        if self._recorder is not None:
            self._recorder.record(layer, dict.fromkeys(key.expert for key in asked), self._phase)
        with backstage.changed:
            backstage.refuse_quarantined(asked)
            found = pool.top.lease_ready(asked)
            if found is None:
                self._lease_some(layer, asked)
            else:
                self._held, self._ready = found, found
                for entry in found:
                    if entry.is_ahead:
                        backstage.count_ahead(entry, "used")
                backstage.count_hits(pool, asked, self._phase)
            backstage.count_tokens(layer, self._rows)
        return self

    def _lease_some(self, layer: int, asked: tuple[ExpertKey, ...]) -> None:
        """Lease what is there, and fetch the rest as far as there are slots; the lock is held."""
        backstage, pool = self._backstage, self._pool
        backstage.refuse_unknown(asked)
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
        self.missed = backstage.count_lookups(pool, asked, self._ready, self._phase)
        self._found = frozenset(self._held)
        self._most_held = pool.most_held(layer, len(asked), len(self._held))
        self._fetch()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._rows:
            return
        backstage, pool = self._backstage, self._pool
        last_use = pool.mark_use()
        with backstage.changed:
            pool.give_back_all(self._held, last_use)
            for entry in self._held:
                if entry.state is State.LOADING and not entry.leases:
                    backstage.call_off(pool, entry)
            self._held = []
            self._wanted.clear()
            backstage.wake()

    def batches(self) -> Iterator[ReadyExperts]:
        """All that is resident at once, then what has become ready since, as soon as anything has.

        In waves (``gives_back``) what has arrived comes one by one, so that slots go back and reads go on.
        """
        are_found = bool(self._ready)
        while self._ready or self._coming or self._wanted:
            if not self._ready:
                self._wait()
            if are_found or not self._wanted:
                entries, self._ready = self._ready, []
            else:
                entries = [self._ready.pop(0)]
            are_found = False
            yield ReadyExperts(self, self._pool, entries, [entry.key for entry in entries])
            if self._wanted:
                self._give_back([entry for entry in entries if entry not in self._found])

    def __iter__(self) -> Iterator[tuple[ExpertKey, Weights]]:
        """The same one by one: each expert and its tensors."""
        for ready in self.batches():
            for index, key in enumerate(ready.keys):
                yield key, ready.weights(index)

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
