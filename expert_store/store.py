"""ExpertStore: experts by lease, from memory or from disk."""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import torch

from .arena import Arena
from .catalog import ExpertCatalog, ExpertKey, ExpertLayout, extents
from .errors import BudgetError, ExpertLoadError, StoreClosedError
from .policies import LruPolicy, PolicyFactory
from .reader import DiskReader
from .statistics import Phase, StoreStatistics
from .tier import Entry, State, Tier

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class _Pool:
    """The slots of one layout and what is known of them."""

    arena: Arena
    tier: Tier


class ExpertStore:
    """The experts of one model: a host tier of fixed slots over the checkpoint's files.

    Any thread may lease. Weights that a lease yields stay untouched until the next one is asked for.

    Args:
        catalog: where each expert's bytes are.
        host_bytes: budget of the host tier; slots never take more, however many are asked for.
        num_readers: threads that read from disk.
        policy: makes the replacement policy of one pool of slots.

    Raises:
        BudgetError: the budget has no room for one slot of each layout, or can't be allocated.
        OSError: a file can't be opened.
    """

    def __init__(
        self,
        catalog: ExpertCatalog,
        host_bytes: int,
        *,
        num_readers: int = 2,
        policy: PolicyFactory = LruPolicy,
    ):
        self.catalog = catalog
        self.host_bytes = host_bytes
        self._pools = {
            layout: _Pool(Arena(layout, num_slots), Tier(num_slots, policy(num_slots)))
            for layout, num_slots in share_slots(catalog, host_bytes).items()
        }
        self._row = {layer: row for row, layer in enumerate(catalog.layers)}
        self._statistics = StoreStatistics(np.zeros((len(catalog.layers), catalog.num_experts), dtype=np.int64))
        self._is_closed = False
        # Guards tiers and statistics. Held for bookkeeping only, never while reading or computing.
        self._changed = threading.Condition()
        self._reader = DiskReader(catalog.paths, num_readers)

    def lease(self, layer: int, rows: Mapping[int, int], phase: Phase = "decode") -> Lease:
        """Lease experts of a layer: ``rows`` tells for each expert how many tokens will be run through it."""
        return Lease(self, layer, rows, phase)

    @property
    def slot_bytes(self) -> int:
        """Bytes that the slots of the host tier take."""
        return sum(pool.arena.nbytes for pool in self._pools.values())

    @property
    def num_slots(self) -> int:
        return sum(pool.tier.num_slots for pool in self._pools.values())

    def residents(self) -> set[ExpertKey]:
        """The experts that are in the host tier now."""
        with self._changed:
            return {key for pool in self._pools.values() for key in pool.tier.resident}

    def statistics(self) -> StoreStatistics:
        """A copy of the counters."""
        with self._changed:
            self._statistics.evictions = sum(pool.tier.evictions for pool in self._pools.values())
            return copy.deepcopy(self._statistics)

    def check_integrity(self) -> None:
        """Raise AssertionError if a slot is lost or used twice."""
        with self._changed:
            for pool in self._pools.values():
                pool.tier.check_integrity()

    def close(self) -> None:
        """Stop reading; whoever waits gets StoreClosedError."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._reader.close()

    def _pool(self, layer: int) -> _Pool:
        return self._pools[self.catalog.layout(layer)]

    def _start_read(self, entry: Entry, pool: _Pool) -> None:
        started = time.perf_counter()
        recipe = self.catalog.recipe(entry.key)
        nbytes = sum(extent.nbytes for extent in extents(recipe))

        def done(error: Exception | None) -> None:
            seconds = time.perf_counter() - started
            with self._changed:
                pool.tier.finish(entry, error)
                if error is None:
                    self._statistics.count_load(nbytes, seconds)
                else:
                    self._statistics.load_failures += 1
                self._changed.notify_all()

        self._reader.submit(recipe, pool.arena, entry.slot, done)


class Lease:
    """A context manager whose iteration yields ``(expert, weights)``, ready ones first.

    Every expert is yielded once, in an order that depends on what is resident. A layer that needs more experts than
    there are slots is served in waves: what was yielded is given back when the next one is asked for.

    Raises (while iterating):
        ExpertLoadError: an expert could not be read; the message names it and says why.
        StoreClosedError: the store was closed meanwhile.
    """

    def __init__(self, store: ExpertStore, layer: int, rows: Mapping[int, int], phase: Phase):
        self._store, self._layer, self._phase = store, layer, phase
        self._pool = store._pool(layer)  # noqa: SLF001  a lease is the store's other half
        self._rows = rows
        self._held: list[Entry] = []
        self._wanted: deque[ExpertKey] = deque()

    def __enter__(self) -> Self:
        store, tier = self._store, self._pool.tier
        with store._changed:  # noqa: SLF001
            # All that is there is leased before anything is evicted, or one expert here would push out another.
            for expert, rows in self._rows.items():
                key = ExpertKey(self._layer, expert)
                entry = tier.lease(key)
                if entry is None:
                    self._wanted.append(key)
                else:
                    self._held.append(entry)
                is_hit = entry is not None and entry.state is State.READY
                store._statistics.count_lookup("host" if is_hit else "disk", self._phase)  # noqa: SLF001
                store._statistics.tokens[store._row[self._layer], expert] += rows  # noqa: SLF001
            self._start_reads()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._store._changed:  # noqa: SLF001
            for entry in self._held:
                self._pool.tier.release(entry)
            self._held.clear()
            self._wanted.clear()
            self._store._changed.notify_all()  # noqa: SLF001

    def __iter__(self) -> Iterator[tuple[int, Weights]]:
        current: Entry | None = None
        while True:
            with self._store._changed:  # noqa: SLF001
                if current is not None:
                    self._give_back(current)
                if not self._held and not self._wanted:
                    return
                current = self._wait_for_ready()
            yield current.key.expert, self._pool.arena.weights(current.slot)

    def _wait_for_ready(self) -> Entry:
        """The first entry that can be used; the lock is held, and released only while waiting."""
        store = self._store
        while True:
            self._start_reads()
            for entry in self._held:
                if entry.state is State.FAILED:
                    raise ExpertLoadError(f"cannot read {entry.key}: {entry.error}") from entry.error
                if entry.state is State.READY:
                    return entry
            if store._is_closed:  # noqa: SLF001
                raise StoreClosedError("the expert store was closed")
            started = time.perf_counter()
            store._changed.wait()  # noqa: SLF001
            store._statistics.stall_seconds[self._phase] += time.perf_counter() - started  # noqa: SLF001

    def _start_reads(self) -> None:
        """Reserve slots for what is still to come, as far as there are any; another lease may have fetched it."""
        while self._wanted:
            key = self._wanted[0]
            entry = self._pool.tier.lease(key)
            if entry is None:
                entry = self._pool.tier.reserve(key)
                if entry is None:
                    return
                self._store._start_read(entry, self._pool)  # noqa: SLF001
            self._held.append(entry)
            self._wanted.popleft()

    def _give_back(self, entry: Entry) -> None:
        self._held.remove(entry)
        self._pool.tier.release(entry)
        self._store._changed.notify_all()  # noqa: SLF001  another lease may wait for a slot


def share_slots(catalog: ExpertCatalog, host_bytes: int) -> dict[ExpertLayout, int]:
    """How many slots each layout gets, in proportion to the bytes of its experts; never more than it has experts.

    Raises:
        BudgetError: a layout would get no slot.
    """
    slots = {
        layout: count * min(host_bytes, catalog.total_bytes) // catalog.total_bytes
        for layout, count in catalog.layouts.items()
    }
    if not all(slots.values()):
        raise BudgetError(f"{host_bytes} bytes hold no expert of every layer; give at least {least_bytes(catalog, 1)}")
    return slots


def least_bytes(catalog: ExpertCatalog, num_slots: int) -> int:
    """The smallest budget that gives every layout ``num_slots`` slots, or as many as it has experts."""
    return max(-(-min(num_slots, count) * catalog.total_bytes // count) for count in catalog.layouts.values())
