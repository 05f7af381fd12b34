"""What an ExpertStore and its leases share: pools, reader, counters, and the one lock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np
import torch

from .arena import HostArena
from .budget import share_slots
from .catalog import ExpertCatalog, ExpertLayout
from .copier import Copier
from .device import open_device
from .errors import ChecksumError, ExpertLoadError, StoreClosedError
from .keys import BASE, ExpertKey
from .pool import DeviceSlots, Pool
from .reader import DiskReader, ReadJob
from .statistics import Phase, StoreStatistics
from .tier import Entry, Tier
from .window import RecentWindow


class Backstage:
    """The store's moving parts. ``changed`` guards all of them; methods expect it to be held.

    It is held for bookkeeping only, never while reading, copying or computing.
    """

    def __init__(
        self,
        catalog: ExpertCatalog,
        host_bytes: int,
        device_bytes: int,
        device: torch.device,
        num_readers: int,
        policy: str,
    ):
        self.catalog = catalog
        self.changed = threading.Condition()
        self.is_closed = False
        tokens = np.zeros((len(catalog.layers), catalog.num_experts), dtype=np.int64)
        self.statistics = StoreStatistics(tokens)
        # The rows of that array; to count one by one in a memoryview takes half the time of counting in numpy.
        self._tokens = {layer: row.data for layer, row in zip(catalog.layers, tokens, strict=True)}
        self.quarantined: dict[ExpertKey, str] = {}
        self.keys = {
            layer: [ExpertKey(layer, expert) for expert in range(len(entry.experts))]
            for layer, entry in catalog.layers.items()
        }
        self._num_waiting = 0  # threads that sleep until `changed`
        self._row = {layer: row for row, layer in enumerate(catalog.layers)}
        host_slots = share_slots(catalog, host_bytes)
        device_slots = share_slots(catalog, device_bytes) if device_bytes else {}
        self._device = open_device(device)
        self._copier = Copier(self._device) if device_bytes else None
        self.slot_table = torch.full((len(catalog.layers), catalog.num_experts), -1, dtype=torch.int32, device=device)
        self.pools = [
            Pool(
                layout,
                {layer: len(entry.experts) for layer, entry in catalog.layers.items() if entry.layout == layout},
                host_slots[layout],
                DeviceSlots(self._device, self._copier, device_slots[layout]) if self._copier else None,
                policy,
                self._start_read,
                self._locked,
                self.statistics.count_load,
                self._note_slot,
            )
            for layout in catalog.layouts
        ]
        by_layout = {pool.layout: pool for pool in self.pools}
        self.pool_of = {layer: by_layout[entry.layout] for layer, entry in catalog.layers.items()}
        self.windows = {pool: RecentWindow(_residents_of(pool)) for pool in self.pools}
        self.reader = DiskReader(catalog.paths, num_readers)

    def layer_of(self, keys: Sequence[ExpertKey]) -> int:
        """The one layer of some experts.

        Raises:
            ValueError: they are of several layers, or of one that the model has not.
        """
        layers = {key[0] for key in keys}
        if len(layers) > 1:
            raise ValueError(f"a lease is of one layer, not of layers {sorted(layers)}; take one for each")
        layer = keys[0].layer
        if layer not in self.pool_of:
            raise ValueError(f"the model has no experts in layer {layer}")
        return layer

    def refuse_unknown(self, keys: Iterable[ExpertKey]) -> None:
        """Raise ValueError if the model has not all of these experts."""
        for key in keys:
            self.catalog.recipe(key)

    def refuse_quarantined(self, keys: Iterable[ExpertKey]) -> None:
        """Raise ExpertLoadError if one of the experts is known to be damaged."""
        if self.quarantined:
            for key in keys:
                if key in self.quarantined:
                    raise ExpertLoadError(key, self.quarantined[key])

    def fetch(self, key: ExpertKey, *, ahead: bool = False) -> Entry | None:
        """A leased entry for an expert that is not in the top tier, on its way; None while no slot is free."""
        entry = self.pool_of[key.layer].fetch(key, ahead=ahead)
        if entry is not None:
            entry.is_ahead = ahead
        return entry

    def call_off(self, pool: Pool, entry: Entry) -> None:
        """Nobody waits any longer for an entry that is on its way."""
        if isinstance(entry.job, ReadJob) and self.reader.cancel(entry.job):
            pool.host.abandon(entry)

    def wait(self, timeout_seconds: float | None = None) -> None:
        """Sleep until something changes, or for so long.

        Raises:
            StoreClosedError: the store was closed.
        """
        if self.is_closed:
            raise StoreClosedError("the expert store was closed")
        self._num_waiting += 1
        try:
            self.changed.wait(timeout_seconds)
        finally:
            self._num_waiting -= 1

    def wake(self) -> None:
        """Wake those who wait, if anybody does."""
        if self._num_waiting:
            self.changed.notify_all()

    def count_tokens(self, layer: int, rows: Mapping[ExpertKey, int]) -> None:
        tokens = self._tokens[layer]
        for key, count in rows.items():
            tokens[key.expert] += count

    def count_hits(self, pool: Pool, asked: tuple[ExpertKey, ...], phase: Phase) -> None:
        """Count look-ups that all found their experts where compute reads them."""
        self.statistics.lookups[pool.top_name, phase] += len(asked)
        self.windows[pool].record(asked, len(asked))

    def count_lookups(
        self, pool: Pool, asked: tuple[ExpertKey, ...], ready: Collection[Entry], phase: Phase
    ) -> list[ExpertKey]:
        """Count where experts were found, before anything of their lease moves; those that were in no tier."""
        lookups, hits = self.statistics.lookups, len(ready)
        missed: list[ExpertKey] = []
        lookups[pool.top_name, phase] += hits
        if hits < len(asked):
            found = {entry.key for entry in ready}
            for key in asked:
                if key not in found:
                    where = pool.where(key)
                    lookups[where, phase] += 1
                    if where == "disk":
                        missed.append(key)
        self.windows[pool].record(asked, len(asked) - len(missed))
        return missed

    def count_ahead(self, entry: Entry, outcome: str) -> None:
        """A prefetched expert is asked for."""
        entry.is_ahead = False
        self.statistics.prefetches[outcome] += 1
        job = entry.job
        while isinstance(job, Entry):  # a device entry waits for a host entry's read
            job = job.job
        if job is not None:
            self.reader.promote(job)

    def resize_device(self, slots: Mapping[ExpertLayout, int]) -> None:
        """Give each layout's device tier another number of slots, as soon as nothing in it is in use."""
        assert self._copier is not None
        for pool in self.pools:
            while not pool.device.is_quiet:
                self.wait()
            pool.rebuild_device(DeviceSlots(self._device, self._copier, slots[pool.layout]))
            self.windows[pool].restart()

    def resize_host(self, slots: Mapping[ExpertLayout, int]) -> None:
        """Give each layout's host tier another number of slots; those in use leave when their leases end."""
        for pool in self.pools:
            pool.resize_host(slots[pool.layout])
            self.windows[pool].restart()

    def close(self) -> None:
        """Without ``changed``: wake who waits, and stop the threads after what they have begun."""
        with self.changed:
            self.is_closed = True
            self.wake()
        self.reader.close()
        if self._copier is not None:
            self._copier.close()
        self._device.close()

    def _start_read(self, entry: Entry, arena: HostArena, ahead: bool) -> None:
        started = time.perf_counter()
        pool = self.pool_of[entry.key.layer]
        recipe = self.catalog.recipe(entry.key)
        nbytes = self.catalog.read_bytes(entry.key)

        def done(error: Exception | None) -> None:
            seconds = time.perf_counter() - started
            if error is None:
                self._device.pin(arena, entry.slot)
            with self.changed:
                if error is None:
                    self.statistics.count_load("disk", "host", nbytes, seconds)
                else:
                    self.statistics.load_failures += 1
                    if isinstance(error, ChecksumError):
                        self.quarantined[entry.key] = str(error)
                pool.read_done(entry, error)
                self.wake()

        entry.job = ReadJob(entry.key, recipe, arena, entry.slot, done, ahead)
        self.reader.submit(entry.job)

    def _locked(self, act: Callable[[], None]) -> None:
        with self.changed:
            act()
            self.wake()

    def _note_slot(self, key: ExpertKey, slot: int | None) -> None:
        if key.variant == BASE:
            self.slot_table[self._row[key.layer], key.expert] = -1 if slot is None else slot


def _residents_of(pool: Pool) -> Callable[[], frozenset[ExpertKey]]:
    """Tells the residents of all tiers; made anew only when something has moved."""
    known: frozenset[ExpertKey] = frozenset()
    changes: list[tuple[Tier, int]] = []

    def residents() -> frozenset[ExpertKey]:
        nonlocal known, changes
        now = [(tier, tier.num_changes) for _, tier in pool.tiers]
        if now != changes:
            known, changes = frozenset(key for tier, _ in now for key in tier.resident), now
        return known

    return residents
