"""The experts of one layout: their slots in each tier, and how they move between tiers.

The tiers are lazily exclusive. An expert that is copied to the device leaves a *redundant* copy in its host slot. The
host keeps it while it needs no slot, and evicts redundant copies first. An expert that is evicted from the device is
dropped if the host still has it, else written back. So every slot of both tiers can hold another expert, and nothing is
copied down that is there already. `docs/log.md` has the bytes moved by this and by the alternatives.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from expert_store.arena import DeviceArena, HostArena, Weights, machine_bytes
from expert_store.catalog import ExpertLayout
from expert_store.disk_cache.places import is_remote
from expert_store.entry import Entry, EntryState, EvictObstacle, TierName
from expert_store.io.device_memory import Event
from expert_store.io.expert_read import ExpertRead
from expert_store.io.reader import Priority
from expert_store.keys import BASE, ExpertKey
from expert_store.policies import make_policy
from expert_store.policies.fair import FairPolicy, slots_per_layer
from expert_store.resources import StoreResources
from expert_store.slot_copies import SlotCopies
from expert_store.slot_queue import SlotQueue
from expert_store.tier import Tier, max_held


class LayoutPool:
    """Slots of one layout in each tier, and the loads that fill them.

    ``load`` submits a read to the reader's threads. The thread that has read the bytes finishes the load here, and if
    there is a device tier submits the copy to the copier, whose thread finishes it. Methods expect the store's lock to
    be held, but for ``weights``, ``addresses``, ``slots`` and ``arena``, which touch only what a lease holds.

    Args:
        layout: the layout of the experts.
        resources: the store's lock, threads and counters.
        policy: name of the replacement policy of each tier.
        host_slots: slots of the host tier.
        device_slots: slots of the device tier; 0 for none.

    Raises:
        BudgetError: the memory could not be allocated.
        ValueError: no policy has this name.
    """

    device: Tier
    device_arena: DeviceArena
    top: Tier  # the tier that compute reads
    top_name: TierName

    def __init__(
        self, layout: ExpertLayout, resources: StoreResources, policy: str, host_slots: int, device_slots: int
    ):
        catalog = resources.catalog
        self.layout = layout
        self._resources, self._policy, self.has_device = resources, policy, device_slots > 0
        self._lock, self._statistics = resources.lock, resources.statistics
        self._num_own = {layer: len(entry.experts) for layer, entry in catalog.layers.items() if entry.layout == layout}
        self._policies: dict[TierName, FairPolicy] = {}
        self._rows = {layer: row for row, layer in enumerate(catalog.layers)}  # rows of the slot table
        capacity = max(sum(self._num_own.values()), machine_bytes() // layout.slot_bytes)
        self.host_arena = HostArena(layout, host_slots, capacity)
        self.host = Tier(host_slots, self._make_policy("host", host_slots), self._retire, self.host_arena.revive)
        self.top, self.top_name = self.host, "host"
        self.queue = SlotQueue()
        self._late_pins: set[ExpertKey] = set()  # to load once the slots are not held any more
        self._waiting: dict[Entry, Entry] = {}  # device entries by the host entry whose bytes they wait for
        self._copies = SlotCopies(resources)
        if self.has_device:
            self.device = Tier(0, self._make_policy("device", 0))
            self.allocate_device(device_slots)
        self._update_shares()

    @property
    def experts(self) -> Iterator[ExpertKey]:
        """The experts that have this layout: the model's own, then those of variants."""
        yield from (ExpertKey(layer, expert) for layer, num in self._num_own.items() for expert in range(num))
        for variant, recipes in self._resources.catalog.variants.items():
            yield from (ExpertKey(*place, variant) for place in recipes if place[0] in self._num_own)

    @property
    def tiers(self) -> Iterator[tuple[TierName, Tier]]:
        """The tiers, fastest first."""
        if self.has_device:
            yield "device", self.device
        yield "host", self.host

    def weights(self, entry: Entry) -> Weights:
        """Return the tensors of a ready entry of the top tier."""
        if not self.has_device:
            return self.host_arena.weights(entry.slot)
        self._resources.device.order(entry.arrival)
        return self.device_arena.weights(entry.slot)

    def addresses(self, entries: Sequence[Entry]) -> npt.NDArray[np.uint64]:
        """Return the addresses of the slots of ready entries of the top tier, in the memory of that tier."""
        arena = self.device_arena if self.has_device else self.host_arena
        return self.slots(entries).astype(np.uint64) * np.uint64(self.layout.slot_bytes) + np.uint64(arena.address)

    def slots(self, entries: Sequence[Entry]) -> npt.NDArray[np.int64]:
        """Return the slots of ready entries of the top tier, in ``arena``."""
        if self.has_device:
            for entry in entries:
                self._resources.device.order(entry.arrival)
        return np.fromiter((entry.slot for entry in entries), np.int64, len(entries))

    @property
    def arena(self) -> torch.Tensor:
        """All slots of the top tier, uint8 ``(slots, slot_bytes)``."""
        return self.device_arena.tensor if self.has_device else self.host_arena.tensor

    def where(self, key: ExpertKey) -> TierName:
        """Return the fastest tier in which an expert is ready, or which it enters from a faster one."""
        for name, tier in self.tiers:
            entry = tier.find(key)
            if entry is None:
                continue
            is_written_back = name == "host" and self.has_device and entry.read is None
            if entry.state is EntryState.READY or is_written_back:
                return name
        return "disk"

    def load(self, key: ExpertKey, *, priority: Priority = Priority.DEMAND, lease: object = None) -> Entry | None:
        """Start to load an expert that is not in the top tier; return its leased entry.

        Args:
            lease: on behalf of whom, if of a lease.

        Returns:
            None if no slot is free, or leases wait for slots that came before.
        """
        if not self.queue.is_turn(lease):
            return None
        entry = self._load_to_device(key, priority) if self.has_device else self._load_to_host(key, priority)
        if entry is not None:
            entry.is_prefetched = priority is not Priority.DEMAND
        return entry

    def load_pin(self, key: ExpertKey) -> None:
        """Load a pinned expert, or do so at the end of the hold that keeps all slots."""
        entry = self.load(key)
        if entry is not None:
            self.release(entry)
        elif self.host.is_held:
            self._late_pins.add(key)

    @property
    def evicts_at_end(self) -> bool:
        """True if the end of a hold may evict."""
        return bool(self._late_pins) or self.host.excess > 0

    def end_hold(self) -> None:
        """End one hold of the host tier's residents."""
        self.host.end_hold()
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
            self._copies.last_use[entry.slot] = last_use
        self.top.release(entry)

    def release_all(self, entries: Sequence[Entry], last_use: Event) -> None:
        """End a lease of each of several entries of the top tier that are ready, loading or failed."""
        if last_use is not None:
            self._copies.last_use.update((entry.slot, last_use) for entry in entries)
        self.top.release_all(entries)

    def mark_use(self) -> Event:
        """Return the end of all compute that has been queued on the device.

        The lock makes these follow each other as the ends of leases do: the last one of a slot is the latest.
        """
        return self._resources.device.mark() if self.has_device else None

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

    def free_device(self) -> None:
        """Empty the device tier, which is idle, and free its memory. Pins are kept."""
        for key in list(self.device.resident):
            self._note_slot(key, None)
            self.host.mark_redundant(key, is_redundant=False)
        self._make_device_tier(0)
        del self.device_arena

    def allocate_device(self, num_slots: int) -> None:
        """Allocate slots for the device tier, which has none.

        Raises:
            BudgetError: the memory could not be allocated.
        """
        memory = self._resources.device.allocate(num_slots * self.layout.slot_bytes)
        self.device_arena = DeviceArena(self.layout, memory)
        self._make_device_tier(num_slots)
        # Compute that was queued before may still use what has had this memory until now.
        self._copies.last_use = dict.fromkeys(range(num_slots), self._resources.device.mark())

    def resize_host(self, num_slots: int) -> None:
        """Change the number of host slots; those in use are retired when their leases end."""
        self.host.resize(num_slots)
        self._update_shares()

    def update_experts(self) -> None:
        """Divide the slots among the layers anew, after a variant has come or gone."""
        counts = self._experts_per_layer()
        for policy in self._policies.values():
            policy.set_experts(counts)
        self._update_shares()

    def max_held(self, layer: int, num_requested: int, hits: int) -> int:
        """Return how many slots a lease of a layer holds at once."""
        return max_held(num_requested, self._shares[layer], hits)

    def check_integrity(self) -> None:
        for _, tier in self.tiers:
            tier.check_integrity()

    def _make_device_tier(self, num_slots: int) -> None:
        """Make an empty device tier with the pins and the counters of the one before."""
        old = self.device
        self.device = Tier(num_slots, self._make_policy("device", num_slots))
        self.device.evictions, self.device.wasted = old.evictions, old.wasted
        for key in old.pinned:
            self.device.pin(key)
        self.top, self.top_name = self.device, "device"
        self._update_shares()

    def _make_policy(self, tier: TierName, num_slots: int) -> FairPolicy:
        policy = self._policies[tier] = make_policy(self._policy, num_slots, self._experts_per_layer())
        return policy

    def _experts_per_layer(self) -> dict[int, int]:
        """Return the number of experts of each layer, those of variants included."""
        places = self._resources.catalog.places_per_layer
        return {layer: places[layer] for layer in self._num_own}

    def _update_shares(self) -> None:
        self._shares = slots_per_layer(self.top.num_slots, self._experts_per_layer())

    def _load_to_host(self, key: ExpertKey, priority: Priority) -> Entry | None:
        recipe, sources = self._resources.catalog.recipe(key), self._resources.sources[key.variant]
        entry = self.host.reserve(key)
        if entry is None:
            return None
        started = time.perf_counter()

        def done(error: Exception | None) -> None:
            self._finish_read(entry, nbytes, error, time.perf_counter() - started, is_far=is_far)

        is_far = is_remote(recipe)
        nbytes = self._resources.catalog.read_bytes(key)
        entry.read = ExpertRead(key, recipe, sources, self.host_arena, entry.slot, done, priority)
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
        source = self.host.lease(key) or self._load_to_host(key, priority)
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
            self._note_slot(entry.key, entry.slot)

        def done(error: Exception | None, seconds: float) -> None:
            if error is None:
                self._statistics.count_load("host", "device", self.layout.slot_bytes, seconds)
                self.host.mark_redundant(entry.key, is_redundant=self.device.find(entry.key) is entry)
            elif entry.state is EntryState.LOADING:  # once a copy is queued, compute itself meets the device's error
                self.device.finish_load(entry, error)
            self.host.release(source)

        host, device = self.host_arena.tensor_of(source.slot), self.device_arena.tensor_of(entry.slot)
        self._copies.submit(host, device, entry.slot, queued, done)

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
        self._copies.submit(device, host, device_slot, lambda _: None, done, prepare=pin)

    def _note_slot(self, key: ExpertKey, slot: int | None) -> None:
        """Enter an expert's slot in the device tier into the slot table; None if it has left the tier."""
        if key.variant == BASE:
            self._resources.slot_table[self._rows[key.layer], key.expert] = -1 if slot is None else slot

    def _retire(self, slot: int) -> None:
        self._resources.device.unpin(self.host_arena, slot)
        self.host_arena.retire(slot)
