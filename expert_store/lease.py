"""Lease: some experts of a layer, to compute with."""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
import torch

from expert_store.arena import Weights
from expert_store.entry import Entry, EntryState, TierName
from expert_store.errors import ExpertLoadError
from expert_store.host_part import HostPart
from expert_store.keys import ExpertKey
from expert_store.layer_hold import LayerHold
from expert_store.layout_pool import LayoutPool
from expert_store.statistics import Phase
from expert_store.store_state import StoreState

WAIT_SECONDS = 1.0  # between two looks at whether anything may still come
STUCK_SECONDS = 60.0  # a lease does not wait longer for its next expert
TOO_LONG = "it has not come for too long; the disk or the network storage does not answer"
RESIZE_SECONDS = 2.0  # a new lease lets a resize go first no longer; its own thread may hold a lease that has to end


class Recorder(Protocol):
    """Records every lease; ``RoutingLogWriter`` is one."""

    def record(self, layer: int, experts: Iterable[int], phase: Phase, *, is_passing: bool = False) -> None: ...


class ReadyExperts:
    """Some experts of a lease that are ready to compute with."""

    __slots__ = ("_entries", "_lease", "_pool", "keys")

    def __init__(self, lease: Lease, pool: LayoutPool, entries: Sequence[Entry], keys: Sequence[ExpertKey]):
        self._lease, self._pool, self._entries = lease, pool, entries
        self.keys = keys

    def without(self, keys: Collection[ExpertKey]) -> ReadyExperts:
        """Return the experts but for some."""
        left = [(entry, key) for entry, key in zip(self._entries, self.keys, strict=True) if key not in keys]
        return ReadyExperts(self._lease, self._pool, [entry for entry, _ in left], [key for _, key in left])

    def weights(self, index: int) -> Weights:
        """Return the tensors of ``keys[index]`` by parameter name: views of its slot."""
        return self._pool.weights(self._entries[index])

    @property
    def addresses(self) -> array[int]:
        """The address of each expert's slot, uint64; ``ExpertLayout.offsets`` has the places of its tensors.

        Addresses are in the memory of the host, or of the device where there is a device tier.
        """
        return self._pool.addresses(self._entries)

    @property
    def slots(self) -> npt.NDArray[np.int64]:
        """The slot of each expert in ``arena``, ``(keys,)``."""
        return self._pool.slots(self._entries)

    @property
    def arena(self) -> torch.Tensor:
        """All slots, uint8 ``(slots, slot_bytes)``, in the memory of the host or of the device."""
        return self._pool.arena

    @property
    def gives_back(self) -> bool:
        """True while asking for the next batch may take these weights away; once False, it stays so."""
        return self._lease.gives_back


class Lease:
    """A context manager that leases experts of one layer and yields them as they become ready.

    Every expert is yielded once, in an order that depends on what is resident. Weights may be used until the next
    batch is asked for, and while ``gives_back`` is False until the end of the lease. When the lease is entered, the
    reads of all missing experts begin, as far as there are slots. A lease of more experts than its layer's share of
    slots is served in waves: it keeps its hits until its end, and releases the others when the next batch is asked for.

    Raises (when entered or while iterating):
        ExpertLoadError: an expert could not be read; the message names it and says why.
        StoreClosedError: the store was closed meanwhile.
        ValueError: the model has no such expert, or they are of several layers; nothing is leased then.
    """

    def __init__(
        self,
        state: StoreState,
        rows: Mapping[ExpertKey, int],
        phase: Phase,
        recorder: Recorder | None,
        after: LayerHold | None = None,
        *,
        uses_host: bool = False,
        is_passing: bool = False,
    ):
        self._state, self._rows, self._phase, self._is_passing = state, rows, phase, is_passing
        self._recorder, self._after, self._uses_host = recorder, after, uses_host
        self._host: HostPart | None = None
        self._held: list[Entry] = []
        self._ready: list[Entry] = []  # held, and not yielded yet
        self._loading: list[Entry] = []
        self._wanted: deque[ExpertKey] = deque()  # no slot yet
        self._uncounted: set[ExpertKey] = set()  # of those, which were in a slower tier
        # Experts that were in no tier when they were to be loaded, and whether they were on no disk either.
        self.missed: dict[ExpertKey, bool] = {}
        self.read_ahead: list[ExpertKey] = []  # found here, since they were read from disk for this, their first, use
        self.stall_seconds = 0.0  # spent waiting for experts
        self.stalled_from = self.stalled_to = 0.0  # start of the first wait and end of the last, ``time.monotonic``
        self._since = time.monotonic()  # the last expert came, or the lease began

    @property
    def num_lookups(self) -> int:
        return len(self._rows)

    @property
    def gives_back(self) -> bool:
        """True while asking for the next batch may take away the weights of earlier ones."""
        return bool(self._wanted)

    def __enter__(self) -> Self:
        state, requested = self._state, tuple(self._rows)
        if not requested:
            return self
        layer = state.layer_of(requested)
        self._pool = pool = state.pool_of[layer]
        if self._recorder is not None:
            experts = dict.fromkeys(key.expert for key in requested)
            self._recorder.record(layer, experts, self._phase, is_passing=self._is_passing)
        with state.lock:
            if state.next_device_slots is not None and self._after is None:
                self._wait_for_resize()
            state.refuse_quarantined(requested)
            found = None if self._is_passing else pool.top.lease_ready(requested)
            if found is None:
                self._lease_some(layer, requested)
            else:
                self._held, self._ready = found, found
                if self._after is not None:
                    self._after.give_way()
                for entry in found:
                    if entry.is_prefetched:
                        self._count_prefetch(entry, is_ready=True)
                state.count_hits(pool, requested, self._phase)
            state.count_tokens(layer, self._rows)
        return self

    def _lease_some(self, layer: int, requested: tuple[ExpertKey, ...]) -> None:
        """Lease what is resident or loading, and load the rest as far as there are slots; the lock is held."""
        state, pool = self._state, self._pool
        state.refuse_unknown(requested)
        # Everything that is here is leased before anything is evicted, or one of these experts would evict another.
        absent = []
        find = pool.top.lease_without_use if self._is_passing else pool.top.lease
        for key in requested:
            entry = find(key)
            if entry is None:
                absent.append(key)
                continue
            self._held.append(entry)
            is_ready = entry.state is EntryState.READY
            (self._ready if is_ready else self._loading).append(entry)
            if entry.is_prefetched:
                self._count_prefetch(entry, is_ready=is_ready)
        if self._uses_host and pool.has_device:
            self._host = HostPart(pool)
            absent = self._host.take(absent)
            state.statistics.host_computed += len(self._host.keys)
        self._wanted.extend(absent)
        waiting = set(self._wanted)
        self.missed, self._uncounted = state.count_lookups(pool, requested, self._ready, waiting, self._phase)
        self._found = frozenset(self._held)
        is_prompt = self._phase == "prefill"
        self._max_held = len(requested)
        if not self._is_passing:
            self._max_held = pool.max_held(layer, len(requested), len(self._held), is_prompt=is_prompt)
        if self._after is not None:
            self._after.give_way()
        self._load_wanted()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._rows:
            return
        state, pool = self._state, self._pool
        with state.lock:
            pool.release_all(self._held, pool.mark_use())
            for entry in self._held:
                if entry.state is EntryState.LOADING and not entry.leases:
                    pool.cancel_load(entry)
            self._held = []
            if self._host is not None:
                self._host.release()
            for key in self._wanted:
                self._count(key, pool.where(key))
            self._wanted.clear()
            pool.queue.leave(self)
            state.lock.wake_waiters()

    def batches(self) -> Iterator[ReadyExperts]:
        """Yield the hits at once, then what has become ready since, as soon as anything has.

        In waves (``gives_back``), experts that were read are yielded one by one, so that slots are released and reads
        go on.
        """
        are_found = bool(self._ready)
        while self._ready or self._loading or self._wanted:
            if not self._ready:
                self._wait()
            if are_found or not self._wanted:
                entries, self._ready = self._ready, []
            else:
                entries = [self._ready.pop(0)]
            are_found = False
            yield ReadyExperts(self, self._pool, entries, [entry.key for entry in entries])
            if self._wanted:
                self._release([entry for entry in entries if entry not in self._found])

    def wait(self, timeout: float) -> bool:
        """Wait until all experts are ready, but no longer than a number of seconds; return whether they are.

        Only a lease that holds all of its experts at once may wait so, before its batches are asked for.

        Raises:
            ExpertLoadError: one could not be read, or its read does not return.
        """
        if not self._rows:
            return True
        now = time.monotonic()
        ends_at = now + timeout
        with self._state.lock:
            while self._load_wanted_all():
                if self._is_stuck(now - self._since):
                    self._refuse_stuck()
                if now >= ends_at:
                    return False
                self._sleep(ends_at - now)
                now = time.monotonic()
        return True

    def _load_wanted_all(self) -> bool:
        """Load what has no slot yet; return whether something is still to come. The lock is held."""
        num_missing = len(self._loading) + len(self._wanted)
        self._load_wanted()
        self._sort_loading()
        if len(self._loading) + len(self._wanted) < num_missing:
            self._since = time.monotonic()
        return bool(self._loading or self._wanted)

    def on_host(self) -> HostPart | None:
        """Wait for the experts that are to be computed from host memory; None if there are none.

        Raises:
            ExpertLoadError: one could not be read, or its read does not return.
        """
        if self._host is None or not self._host.keys:
            return None
        began = time.monotonic()
        with self._state.lock:
            while loading := self._host.loading:
                if time.monotonic() - began > STUCK_SECONDS:
                    raise ExpertLoadError(loading[0].key, TOO_LONG)
                self._sleep(WAIT_SECONDS)
        return self._host

    def __iter__(self) -> Iterator[tuple[ExpertKey, Weights]]:
        """Yield the experts one by one, each with its tensors."""
        for ready in self.batches():
            for index, key in enumerate(ready.keys):
                yield key, ready.weights(index)

    def _wait(self) -> None:
        """Wait until at least one more expert is ready.

        Raises:
            ExpertLoadError: one could not be read, or its read does not return.
        """
        began = time.monotonic()
        stuck_since: float | None = None
        has_asked = False  # for slots, since the last sleep
        with self._state.lock:
            while True:
                self._load_wanted()
                self._sort_loading()
                if self._ready:
                    if self._pool.queue.has_waiters:  # those behind this lease may take slots now
                        self._state.lock.wake_waiters()
                    return
                if not self._loading and self._held:  # every slot is in use; the hits were yielded and may be released
                    self._release(list(self._held))
                    continue
                if not self._loading and not has_asked:
                    self._ask_for_slots()
                    has_asked = True
                    continue
                now = time.monotonic()
                stuck_since = (stuck_since or now) if self._is_stuck(now - began) else None
                if stuck_since is not None and now - stuck_since >= WAIT_SECONDS:
                    self._refuse_stuck()
                self._sleep(WAIT_SECONDS)
                has_asked = False

    def _ask_for_slots(self) -> None:
        """Ask for slots of other leases. The lock is held, and free meanwhile, but this lease keeps its turn."""
        self._pool.queue.begin_wait(self)
        try:
            with self._state.lock.released():
                self._state.on_starvation()
        finally:
            self._pool.queue.end_wait(self)

    def _sleep(self, timeout: float) -> None:
        """Wait until something changes; the lock is held."""
        state, started = self._state, time.monotonic()
        try:
            self._pool.queue.begin_wait(self)
            state.lock.wait(timeout)
        finally:
            self._pool.queue.end_wait(self)
            self.stalled_to = time.monotonic()
            self.stalled_from = self.stalled_from or started
            seconds = self.stalled_to - started
            self.stall_seconds += seconds
            state.statistics.stall_seconds[self._phase] += seconds

    def _wait_for_resize(self) -> None:
        """Let a resize of the device tier go first, which waits until nothing is in use; the lock is held."""
        ends_at = time.monotonic() + RESIZE_SECONDS
        while self._state.next_device_slots is not None and (left := ends_at - time.monotonic()) > 0:
            self._sleep(left)

    def _is_stuck(self, seconds: float) -> bool:
        """Return True if what is waited for does not come: a read that does not return, or anything for too long."""
        reads = [entry.read for entry in self._loading if entry.read is not None]
        return seconds > STUCK_SECONDS or any(map(self._state.reader.is_stuck, reads))

    def _refuse_stuck(self) -> None:
        reader = self._state.reader
        stuck = [entry.key for entry in self._loading if entry.read is not None and reader.is_stuck(entry.read)]
        key = [*stuck, *(entry.key for entry in self._loading), *self._wanted][0]
        raise ExpertLoadError(key, TOO_LONG)

    def _sort_loading(self) -> None:
        """Move entries whose load has ended from ``_loading`` to ``_ready``; the lock is held."""
        for entry in self._loading:
            if entry.state is EntryState.FAILED:
                raise ExpertLoadError(entry.key, entry.error) from entry.error
        self._ready.extend(entry for entry in self._loading if entry.state is EntryState.READY)
        self._loading = [entry for entry in self._loading if entry.state is EntryState.LOADING]

    def _load_wanted(self) -> None:
        """Load experts that have no slot yet, as far as there are slots; another lease may have loaded some."""
        top = self._pool.top
        while self._wanted and len(self._held) < self._max_held:
            key = self._wanted[0]
            where = self._pool.where(key)
            entry = (top.lease_without_use if self._is_passing else top.lease)(key)
            if entry is None:
                self._state.refuse_removed(key)
                entry = self._pool.load(key, lease=self, is_passing=self._is_passing)
            if entry is None:
                self._pool.queue.join(self)
                return
            self._count(key, where)
            self._held.append(entry)
            self._loading.append(entry)
            self._wanted.popleft()
        self._pool.queue.leave(self)

    def _count(self, key: ExpertKey, where: TierName) -> None:
        """Count the look-up of an expert that was in a slower tier at first; the lock is held."""
        if key in self._uncounted:
            self._uncounted.remove(key)
            self._state.statistics.lookups[where, self._phase] += 1
            if where == "disk":
                self.missed[key] = self._state.count_place(key, self._phase)

    def _count_prefetch(self, entry: Entry, *, is_ready: bool) -> None:
        """Count the first request of a prefetched expert; one that is not ready counts as missed, too."""
        self._pool.count_prefetch(entry, "used" if is_ready else "late")
        if entry.is_read_ahead and is_ready:
            self.read_ahead.append(entry.key)
        entry.is_read_ahead = False

    def _release(self, entries: Sequence[Entry]) -> None:
        """Release entries before the end of the lease, and load others in their place."""
        with self._state.lock:
            last_use = self._pool.mark_use()
            for entry in entries:
                self._held.remove(entry)
                self._pool.release(entry, last_use)
            self._load_wanted()
            self._state.lock.wake_waiters()
