"""StepLease: the experts of all layers that are in memory, for one step.

A step may also use experts of variants. Each layer then has a list of *places*: its own experts and those of variants.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from expert_store.entry import Entry, EntryState
from expert_store.keys import ExpertKey
from expert_store.layout_pool import LayoutPool
from expert_store.lease import Recorder
from expert_store.statistics import Phase
from expert_store.store_state import StoreState

Addresses = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]
LayerKeys = Mapping[int, Sequence[ExpertKey]]
VERSIONS = itertools.count()


class ResidentAddresses:
    """The addresses of those of some experts that are in the tier that compute reads.

    They are one table, in which each hold enters what has come and gone, so that kernels can read it in place. An
    address that a hold has found stays until its end; those of experts that arrive meanwhile may be entered by others.

    The caller holds the store's lock.

    Args:
        keys: the experts of each layer, by place; by default the model's own.
    """

    def __init__(self, state: StoreState, keys: LayerKeys | None = None):
        self._state = state
        self._by_layer: LayerKeys = state.keys if keys is None else keys
        self.keys = [key for keys in self._by_layer.values() for key in keys]  # of all layers, in their order
        self._sizes = [*map(len, self._by_layer.values())]  # experts of each layer
        self._is_even = len({*self._sizes}) == 1
        self._bounds = np.cumsum([0, *self._sizes])  # the first of ``keys`` of each layer
        self._layers = list(self._by_layer)
        shape = len(self._by_layer), max(map(len, self._by_layer.values()))
        self._places = {  # in the flattened table
            key: row * shape[1] + place
            for row, keys in enumerate(self._by_layer.values())
            for place, key in enumerate(keys)
        }
        rows = {layer: row for row, layer in enumerate(state.catalog.layers)}
        width = state.statistics.tokens.shape[1]
        self.tokens = np.array(  # the index of each of ``keys`` in ``StoreStatistics.tokens``, flattened; -1 for none
            [rows[key.layer] * width + key.expert if key.expert < width else -1 for key in self.keys], np.intp
        )
        self._keys = {
            pool: frozenset(
                key for layer, keys in self._by_layer.items() if state.pool_of[layer] is pool for key in keys
            )
            for pool in state.pools
        }
        self._tiers = [pool.top for pool in state.pools]  # a device tier is replaced when it is resized
        self._num_changes: list[int] | None = None
        table = np.zeros(shape, np.uint64)
        self._cells = table.reshape(-1).data
        self.addresses = table.view()  # (layers, places): where each slot begins; 0 for an expert that is not resident
        self.addresses.flags.writeable = False
        self.version = next(VERSIONS)  # another number in each table, and after each change
        self._arrived: dict[ExpertKey, tuple[LayoutPool, Entry]] = {}  # those that compute does not wait for yet
        self.num_resident = 0
        self.prefetched: list[Entry] = []  # entries that were prefetched and may not have been requested yet

    @property
    def has_variants(self) -> bool:
        return self._by_layer is not self._state.keys

    def is_of(self, keys: LayerKeys) -> bool:
        """Return True if these are the addresses of the same object of keys."""
        return self._by_layer is keys

    def counts_of(self, layers: list[int], rows: Counts) -> tuple[int, Counts, npt.NDArray[np.intp]]:
        """Return the counts of layers in the order of ``keys``, without a gap.

        Args:
            rows: counts of the experts of each layer, ``(layers, places)``.

        Returns:
            The place in ``keys`` of the first count, the counts, and the bounds of each layer among them.
        """
        row = self._layers.index(layers[0]) if layers else 0
        end = row + len(layers)
        if self._layers[row:end] != layers:  # in another order, or with gaps
            spread = np.zeros((len(self._layers), rows.shape[1]), np.int64)
            spread[[self._layers.index(layer) for layer in layers]] = rows
            return self.counts_of(self._layers, spread)
        sizes = self._sizes[row:end]
        width = max(sizes, default=0)
        if self._is_even or not layers:
            counts = rows[:, :width].reshape(-1)
        else:
            counts = np.concatenate([each[:size] for each, size in zip(rows, sizes, strict=True)])
        return int(self._bounds[row]), counts, self._bounds[row : end + 1] - self._bounds[row]

    def take_read_ahead(self, layers: list[int], rows: Counts) -> list[ExpertKey]:
        """Return the experts that were read ahead and first used by these rows; see ``counts_of``."""
        found = []
        for entry in self.prefetched if layers else ():
            if entry.is_read_ahead:
                row, place = divmod(self._places[entry.key], self.addresses.shape[1])
                layer = self._layers[row]
                if layer in layers and rows[layers.index(layer), place]:
                    entry.is_read_ahead = False
                    found.append(entry.key)
        return found

    def check_counts(self, layers: list[int], rows: Counts) -> None:
        """Raise ValueError if counts are not of all experts of a layer; see ``counts_of``."""
        if rows.shape[1] < self.addresses.shape[1]:
            width = max((self._sizes[self._layers.index(layer)] for layer in layers), default=0)
            if rows.shape[1] < width:
                raise ValueError(f"{rows.shape[1]} counts for the {width} experts of these layers")

    def hold(self, *, needs_all: bool = False, overlaps: bool = False) -> bool:
        """Hold the resident experts in their slots.

        Args:
            needs_all: return False if one is not resident.
            overlaps: return False if the end of another hold is to evict.

        Returns:
            False, and no hold, if another lease waits for a slot, or a resize of the device tier for its turn.
        """
        pools = self._state.pools
        if self._state.next_device_slots is not None:
            return False
        num_changes = []
        for index, pool in enumerate(pools):
            if pool.queue.has_waiters or (overlaps and pool.evicts_at_end):
                return False
            tier = pool.top
            if tier is not self._tiers[index]:
                self._tiers[index], self._num_changes = tier, None
            num_changes.append(tier.num_changes)
        if num_changes != self._num_changes:
            self._update(num_changes)
        if needs_all and self.num_resident < len(self.keys):
            return False
        for pool in pools:
            pool.top.hold(self._keys[pool])
        for pool, entry in self._arrived.values():
            pool.order([entry])
        self._arrived = {}
        return True

    def end_hold(self) -> None:
        """End one ``hold``."""
        for pool in self._state.pools:
            if pool.evicts_at_end:
                self._state.lock.settle()
        for pool in self._state.pools:
            pool.end_hold()
        self._state.lock.wake_waiters()

    def _update(self, num_changes: list[int]) -> None:
        """Enter what has come and gone."""
        cells, places = self._cells, self._places
        for pool, known in zip(self._state.pools, self._num_changes or [0] * len(num_changes), strict=True):
            changed = None if self._num_changes is None else pool.top.changed_since(known)
            keys = self._keys[pool] if changed is None else self._keys[pool].intersection(changed)
            first, slot_bytes = pool.arena_address, pool.layout.slot_bytes
            for key in keys:
                entry, place = pool.top.find(key), places[key]
                self._arrived.pop(key, None)
                self.num_resident -= cells[place] > 0
                cells[place] = 0
                if entry is None or entry.state is not EntryState.READY:
                    continue
                self.num_resident += 1
                cells[place] = first + entry.slot * slot_bytes
                if pool.has_device:
                    self._arrived[key] = pool, entry
                if entry.is_prefetched:
                    self.prefetched.append(entry)
        self._num_changes, self.version = num_changes, next(VERSIONS)


class StepLease:
    """A context manager that holds the resident experts of all layers in their slots, as a lease of each would.

    While it is open, none is evicted, and budgets that shrink wait for its end. A lease of another expert, or variant,
    may have to wait for the end of this one.
    """

    def __init__(self, state: StoreState, residents: ResidentAddresses, recorder: Recorder | None):
        self._state, self._residents, self._recorder = state, residents, recorder
        self._is_open = True
        self.layers = list(state.keys)  # in the order of the rows of ``addresses``
        self.addresses = residents.addresses  # (layers, places), see there; a table that later holds change
        self.version = residents.version  # another number once an expert has moved
        self.holds_all = residents.num_resident == len(residents.keys)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_open:
            self._is_open = False
            with self._state.lock:
                self._residents.end_hold()

    def arena(self, layer: int) -> torch.Tensor:
        """Return all slots of a layer's experts, uint8 ``(slots, slot_bytes)``, in the memory that compute reads."""
        return self._state.pool_of[layer].arena

    def slots(self, layer: int) -> npt.NDArray[np.int64]:
        """Return the slot of each place of a layer in ``arena``, ``(places,)``, -1 where no expert is resident."""
        pool = self._state.pool_of[layer]
        addresses = self.addresses[self.layers.index(layer)]
        slots = (addresses - np.uint64(pool.arena_address)) // np.uint64(pool.layout.slot_bytes)
        return np.where(addresses > 0, slots.astype(np.int64), -1)

    def close(self, layers: list[int], rows: Counts, phase: Phase = "decode") -> list[ExpertKey]:
        """End the lease of a step that succeeded, and count what it used as one lease of each layer.

        A step that fails leaves the context without this call; nothing is counted then.

        Args:
            layers: that have run.
            rows: that each place of these layers was run on, ``(layers, places)``; 0 where a layer has fewer places.
                They are kept.

        Returns:
            The experts that were read ahead of this, their first, use.

        Raises:
            ValueError: the lease has ended, or counts are not of all experts of a layer.
        """
        if not self._is_open:
            raise ValueError("the lease of this step is closed already")
        self._residents.check_counts(layers, rows)
        lock = self._state.lock
        lock.acquire()
        try:
            read_ahead = self._residents.take_read_ahead(layers, rows)
            lock.defer(lambda: self._count_step(layers, rows, phase))
            if self._recorder is not None:  # it may be closed before anything else is done with the store
                lock.settle()
            self._is_open = False
            self._residents.end_hold()
        finally:
            lock.release()
        return read_ahead

    def _count_step(self, layers: list[int], rows: Counts, phase: Phase) -> None:
        """Count what a step used; see ``close``."""
        first, counts, bounds = self._residents.counts_of(layers, rows)
        used = counts.nonzero()[0]
        requested = [self._residents.keys[first + place] for place in used.tolist()]
        self._count_tokens(used + first, counts[used])
        for start, end in pairwise(used.searchsorted(bounds).tolist()):
            if start < end:
                self._count(tuple(requested[start:end]), phase)
        self._count_prefetches(requested)

    def _count_tokens(self, used: npt.NDArray[np.intp], counts: Counts) -> None:
        statistics, indices = self._state.statistics, self._residents.tokens[used]
        if not self._residents.has_variants:
            statistics.tokens.reshape(-1)[indices] += counts
            return
        is_counted = indices >= 0
        np.add.at(statistics.tokens.reshape(-1), indices[is_counted], counts[is_counted])
        for index, count in zip(used.tolist(), counts.tolist(), strict=True):
            variant = self._residents.keys[index].variant
            if variant in self._state.catalog.variants:
                statistics.variant_tokens[variant] += count

    def _count(self, requested: tuple[ExpertKey, ...], phase: Phase) -> None:
        layer = requested[0].layer
        pool = self._state.pool_of[layer]
        if self._recorder is not None:
            self._recorder.record(layer, [key.expert for key in requested], phase)
        self._state.count_hits(pool, requested, phase)
        pool.top.touch(requested)

    def _count_prefetches(self, requested: list[ExpertKey]) -> None:
        if not self._residents.prefetched:
            return
        keys = set(requested)
        for entry in self._residents.prefetched:
            if entry.is_prefetched and entry.key in keys:
                self._state.pool_of[entry.key.layer].count_prefetch(entry, "used")
        self._residents.prefetched = [entry for entry in self._residents.prefetched if entry.is_prefetched]
