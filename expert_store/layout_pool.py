"""The experts of one layout, and how they move between its tiers.

The tiers are lazily exclusive. An expert that is copied to the device leaves a *redundant* copy in its host slot. The
host keeps it while it needs no slot, and evicts redundant copies first. An expert that is evicted from the device is
dropped if the host still has it, else written back. So every slot of both tiers can hold another expert, and nothing is
copied down that is there already. Bytes moved by this and by the alternatives:
`benchmarks/results/2026-11-24-unnamed/replacement-policies-and-tiers.json`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from expert_store.catalog import ExpertLayout
from expert_store.disk_cache.places import is_remote
from expert_store.entry import Entry, EntryState, EvictObstacle
from expert_store.io.device_memory import Event
from expert_store.io.expert_read import ExpertRead
from expert_store.io.reader import Priority
from expert_store.keys import ExpertKey
from expert_store.layout_tiers import LayoutTiers
from expert_store.resources import StoreResources
from expert_store.slot_copies import SlotCopies
from expert_store.slot_queue import SlotQueue


class LayoutPool(LayoutTiers):
    """The experts of one layout, and the loads that fill its slots.

    ``load`` submits a read to the reader's threads. The thread that has read the bytes finishes the load here, and if
    there is a device tier submits the copy to the copier, whose thread finishes it. Arguments are those of
    ``LayoutTiers``.
    """

    def __init__(
        self, layout: ExpertLayout, resources: StoreResources, policy: str, host_slots: int, device_slots: int
    ):
        super().__init__(layout, resources, policy, host_slots, device_slots)
        self._lock, self._statistics = resources.lock, resources.statistics
        self.queue = SlotQueue()
        self._late_pins: set[ExpertKey] = set()  # to load once the slots are not held any more
        self._waiting: dict[Entry, Entry] = {}  # device entries by the host entry whose bytes they wait for
        self._copies = SlotCopies(resources)

    def load(
        self,
        key: ExpertKey,
        *,
        priority: Priority = Priority.DEMAND,
        lease: object = None,
        is_passing: bool = False,
    ) -> Entry | None:
        """Start to load an expert that is not in the top tier; return its leased entry.

        Args:
            lease: on behalf of whom, if of a lease.
            is_passing: see ``Tier.reserve``.

        Returns:
            None if no slot is free, or leases wait for slots that came before.
        """
        if not self.queue.is_turn(lease):
            return None
        is_copied = self.only_copies(key)
        if self.has_device:
            entry = self._load_to_device(key, priority)
        else:
            entry = self.load_to_host(key, priority, is_passing=is_passing)
        if entry is not None:
            entry.is_prefetched = priority is not Priority.DEMAND
            entry.is_read_ahead = priority is Priority.PREFETCH and not is_copied
        return entry

    def only_copies(self, key: ExpertKey) -> bool:
        """Return True if a load of an expert is a copy from host memory to the device."""
        source = self.host.find(key) if self.has_device else None
        return source is not None and source.state is EntryState.READY

    def load_pin(self, key: ExpertKey) -> None:
        """Load a pinned expert, or do so at the end of the hold that keeps all slots."""
        entry = self.load(key)
        if entry is not None:
            self.release(entry)
        elif self.top.is_held:
            self._late_pins.add(key)

    @property
    def evicts_at_end(self) -> bool:
        """True if the end of a hold may evict."""
        return bool(self._late_pins) or self.top.excess > 0

    def end_hold(self, *, is_used: bool = True) -> None:
        """End one hold of the residents of the top tier.

        Args:
            is_used: compute may have been queued that reads the slots, but for those that are leased.
        """
        if self.has_device and is_used:
            self._use_all(self.mark_use())
        self.top.end_hold()
        late, self._late_pins = self._late_pins, set()
        for key in late:
            if self.top.is_pinned(key) and self.top.find(key) is None:
                self.load_pin(key)

    def cancel_load(self, entry: Entry) -> None:
        """Cancel the load of an entry without leases, unless its read has begun or there is a device tier."""
        if not self.has_device and entry.read is not None and self._resources.reader.cancel(entry.read):
            self.host.cancel_load(entry)

    def count_prefetch(self, entry: Entry, outcome: str) -> None:
        """Count the first request of a prefetched expert, and turn a read that has not begun into a demand."""
        entry.is_prefetched = False
        self._statistics.prefetches[outcome] += 1
        if entry.read is not None:
            self._resources.reader.promote(entry.read)

    def release(self, entry: Entry, last_use: Event = None) -> None:
        """End a lease of an entry of the top tier; on a device its slot is not overwritten before ``last_use``."""
        if last_use is not None:
            self._last_use[entry.slot] = last_use
        self.top.release(entry)

    def release_all(self, entries: Sequence[Entry], last_use: Event) -> None:
        """End a lease of each of several entries of the top tier that are ready, loading or failed."""
        if last_use is not None:
            self._last_use.update((entry.slot, last_use) for entry in entries)
        self.top.release_all(entries)

    def mark_use(self) -> Event:
        """Return the end of all compute that has been queued on the device.

        The lock makes these follow each other as the ends of leases do: the last one of a slot is the latest.

        Raises:
            RuntimeError: the device has failed, and with it the store: whoever waits for it is woken. Later calls
                return None, so that the error of a wait is not hidden by one more.
        """
        if not self.has_device or self._lock.failure:
            return None
        try:
            return self._resources.device.mark()
        except RuntimeError as error:
            self._lock.fail(f"the device of the experts has failed: {error}")
            raise

    def evict(self, key: ExpertKey) -> EvictObstacle | None:
        """Drop an expert from every tier. Return why it stays, or None if it was dropped."""
        if self.top.is_protected(key):  # its copy in a slower tier is redundant, and no loss to speak of
            return self._obstacle(key)
        dropped = [tier.evict(key) for _, tier in self.tiers]
        if self.has_device and dropped[0]:
            self._note_slot(key, None)
        return None if any(dropped) else self._obstacle(key)

    def _obstacle(self, key: ExpertKey) -> EvictObstacle:
        """Return why an expert can't be evicted."""
        if self.top.is_pinned(key):
            return "pinned"
        states = [entry.state for _, tier in self.tiers if (entry := tier.find(key)) is not None]
        if not states:
            return "not_resident"
        return "loading" if EntryState.LOADING in states else "in_use"

    def discard(self, key: ExpertKey) -> None:
        """Forget an expert and its pin in every tier; whoever uses it may do so to the end."""
        for _, tier in self.tiers:
            entry = tier.discard(key)
            if entry is not None and entry.state is EntryState.LOADING and not entry.leases:
                self.cancel_load(entry)

    @property
    def is_device_idle(self) -> bool:
        """True while nothing in the device tier is leased, loading or being copied."""
        return self.device.is_idle and self._copies.is_idle

    def load_to_host(self, key: ExpertKey, priority: Priority, *, is_passing: bool = False) -> Entry | None:
        """Start to read an expert that the host tier lacks; return its leased entry there, None if no slot is free."""
        catalog, sources = self._resources.catalog, self._resources.sources[key.variant]
        recipe, encoding = catalog.recipe(key), catalog.layers[key.layer].encoding
        entry = self.host.reserve(key, is_passing=is_passing)
        if entry is None:
            return None
        started = time.perf_counter()

        def done(error: Exception | None) -> None:
            self._finish_read(entry, nbytes, error, time.perf_counter() - started, is_far=is_far)

        is_far, nbytes = is_remote(catalog, key), catalog.read_bytes(key)
        entry.read = ExpertRead(key, recipe, sources, self.host_arena, entry.slot, done, priority, encoding)
        self._resources.reader.submit(entry.read)
        return entry

    def _load_to_device(self, key: ExpertKey, priority: Priority) -> Entry | None:
        entry = self.device.reserve(key) if self.host.can_reserve(key) else None
        if entry is None:
            return None
        victim = entry.replaces
        if victim is not None:  # before the host looks for a slot: its copy of the victim is no longer redundant
            self._note_slot(victim, None)
            self.host.mark_redundant(victim, is_redundant=False)
        source = self.host.lease(key) or self.load_to_host(key, priority)
        if victim is not None and self.host.find(victim) is None:
            self._write_back(victim, entry.slot)
        if source is None:
            self.device.release(entry)
            self.device.cancel_load(entry)
            return None
        if source.state is EntryState.READY:
            self._copy_to_device(entry, source)
        else:
            entry.read = source.read
            self._waiting[source] = entry
        return entry

    def _finish_read(self, entry: Entry, nbytes: int, error: Exception | None, seconds: float, *, is_far: bool) -> None:
        """Finish the load of a host entry; called from a reader thread, without the lock."""
        if error is None:
            self._resources.device.pin(self.host_arena, entry.slot)
        with self._lock:
            if error is None:
                self._statistics.count_load("disk", "host", nbytes, seconds)
                if is_far:
                    self._statistics.remote_loads.count(nbytes, seconds)
            elif self.host.find(entry.key) is entry:  # else its variant was removed meanwhile
                self._resources.count_failure(entry.key, error)
            self._finish_host_load(entry, error)
            self._lock.wake_waiters()

    def _finish_host_load(self, source: Entry, error: Exception | None) -> None:
        """Finish the load of a host entry, then copy it to the device if a device entry waits for it."""
        self.host.finish_load(source, error)
        entry = self._waiting.pop(source, None)
        if entry is None:
            return
        if error is None:
            self._copy_to_device(entry, source)
        else:
            self.device.finish_load(entry, error)
            self.host.release(source)

    def _copy_to_device(self, entry: Entry, source: Entry) -> None:
        """Copy from host to device; the host entry stays leased until the copy has ended."""

        def queued(event: Event) -> None:
            entry.arrival = event
            self.device.finish_load(entry)
            self._note_slot(entry.key, entry)

        def done(error: Exception | None, seconds: float) -> None:
            if error is None:
                self._statistics.count_load("host", "device", self.layout.slot_bytes, seconds)
                self.host.mark_redundant(entry.key, is_redundant=self.device.find(entry.key) is entry)
            elif entry.state is EntryState.LOADING:  # once a copy is queued, compute itself meets the device's error
                self.device.finish_load(entry, error)
            self.host.release(source)

        host, device = self.host_arena.tensor_of(source.slot), self.device_arena.tensor_of(entry.slot)
        self._copies.submit(host, device, self._last_use_of(entry.slot), queued, done)

    def _write_back(self, victim: ExpertKey, device_slot: int) -> None:
        """Copy an evicted expert from device to host, before another one enters its slot."""
        target = self.host.reserve(victim)
        if target is None:  # every host slot is in use; the disk has the expert
            return

        def done(error: Exception | None, seconds: float) -> None:
            if error is None:
                self._statistics.count_load("device", "host", self.layout.slot_bytes, seconds)
            self._finish_host_load(target, error)
            self.host.release(target)

        def pin() -> None:
            self._resources.device.pin(self.host_arena, target.slot)

        device, host = self.device_arena.tensor_of(device_slot), self.host_arena.tensor_of(target.slot)
        self._copies.submit(device, host, self._last_use_of(device_slot), lambda _: None, done, prepare=pin)
