"""The experts of one layout: their slots in each tier, and how they move between tiers.

The tiers are lazily exclusive. An expert that goes up to the device leaves its host slot behind as *spare*: the host
keeps it for as long as it needs no slot, and gives spare ones up first. An expert that leaves the device is dropped
if the host still has it, else written back. So every slot of both tiers can hold another expert, and nothing is
copied down that is there already. `docs/log.md` has the bytes moved by this and by the alternatives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from .arena import DeviceArena, HostArena, Weights
from .catalog import ExpertLayout
from .copier import Copier, CopyJob
from .device import Device, Event
from .errors import BudgetError
from .keys import ExpertKey
from .policies import Policy, make_policy
from .policies.fair import share_out
from .tier import Entry, State, Tier, most_held

TierName = Literal["device", "host", "disk"]


@dataclass(frozen=True)
class DeviceSlots:
    """What the device tier of a pool needs."""

    device: Device
    copier: Copier
    num_slots: int


class Pool:
    """Slots of one layout. Not thread-safe: the store's lock guards it.

    Args:
        layout: of the experts.
        experts_per_layer: the layers whose experts have it.
        host_slots: slots of the host tier.
        device: slots of the device tier, if there is one.
        policy: name of the replacement policy of a tier.
        start_read: reads a host entry from disk, ahead of its use or not, then calls ``read_done``.
        locked: wraps a callback so that it runs under the store's lock and wakes who waits.
        on_copied: is told of each copy that ended: source and target tier, bytes, and seconds since it was asked for.
        on_moved: is told each expert that enters a device slot, and with None each that leaves one.
    """

    def __init__(
        self,
        layout: ExpertLayout,
        experts_per_layer: Mapping[int, int],
        host_slots: int,
        device: DeviceSlots | None,
        policy: str,
        start_read: Callable[[Entry, HostArena, bool], None],
        locked: Callable[[Callable[[], None]], None],
        on_copied: Callable[[TierName, TierName, int, float], None],
        on_moved: Callable[[ExpertKey, int | None], None],
    ):
        self.layout = layout
        self._experts_per_layer, self._policy = experts_per_layer, policy
        self._start_read, self._locked, self._on_copied, self._on_moved = start_read, locked, on_copied, on_moved
        self.host_arena = HostArena(layout, host_slots, sum(experts_per_layer.values()))
        self.host = Tier(host_slots, self._make_policy(host_slots), self._retire, self.host_arena.revive)
        self._device = device
        self._arriving: dict[ExpertKey, Entry] = {}  # device entries that wait for their bytes to reach the host
        self._last_use: dict[int, Event] = {}  # by device slot: it is not overwritten before
        if device is not None:
            self._make_device_tier(device)
        self._count_shares()

    @property
    def experts(self) -> Iterator[ExpertKey]:
        """The experts of the model that have this layout; variants are not among them."""
        return (ExpertKey(layer, expert) for layer, num in self._experts_per_layer.items() for expert in range(num))

    @property
    def top(self) -> Tier:
        """The tier that compute reads."""
        return self.host if self._device is None else self.device

    @property
    def top_name(self) -> TierName:
        return "host" if self._device is None else "device"

    @property
    def tiers(self) -> Iterator[tuple[TierName, Tier]]:
        """The tiers, fastest first."""
        if self._device is not None:
            yield "device", self.device
        yield "host", self.host

    def weights(self, entry: Entry) -> Weights:
        """The tensors of a ready entry of the top tier."""
        if self._device is None:
            return self.host_arena.weights(entry.slot)
        self._device.device.order(entry.arrival)
        return self.device_arena.weights(entry.slot)

    def addresses(self, entries: Sequence[Entry]) -> npt.NDArray[np.uint64]:
        """The addresses of the slots of ready entries of the top tier, in the memory of that tier."""
        arena = self.host_arena if self._device is None else self.device_arena
        if self._device is not None:
            for entry in entries:
                self._device.device.order(entry.arrival)
        address, slot_bytes = arena.address, self.layout.slot_bytes
        return np.array([address + entry.slot * slot_bytes for entry in entries], np.uint64)

    def where(self, key: ExpertKey) -> TierName:
        """The fastest tier in which an expert is ready."""
        for name, tier in self.tiers:
            entry = tier.find(key)
            if entry is not None and entry.state is State.READY:
                return name
        return "disk"

    def fetch(self, key: ExpertKey, *, ahead: bool) -> Entry | None:
        """A leased entry of the top tier for an expert that is not there, on its way; None while no slot is free."""
        if self._device is None:
            return self._fetch_to_host(key, ahead)
        entry = self.device.reserve(key) if self.host.has_room(key) else None
        if entry is None:
            return None
        victim = entry.replaces
        if victim is not None:  # before the host looks for a slot: what it has of the victim is not spare any more
            self._on_moved(victim, None)
            self.host.mark_spare(victim, is_spare=False)
        below = self.host.lease(key) or self._fetch_to_host(key, ahead)
        if victim is not None and self.host.find(victim) is None:
            self._write_back(victim, entry.slot)
        if below is None:
            self.device.release(entry)
            self.device.abandon(entry)
            return None
        if below.state is State.READY:
            self._copy_up(entry, below)
        else:
            entry.job = below
            self._arriving[key] = entry
        return entry

    def read_done(self, entry: Entry, error: Exception | None) -> None:
        """A host entry was read, or could not be."""
        self.host.finish(entry, error)
        self._pass_on(entry, error)

    def give_back(self, entry: Entry, last_use: Event = None) -> None:
        """Release an entry of the top tier; on a device its slot is not overwritten before ``last_use``."""
        if last_use is not None:
            self._last_use[entry.slot] = last_use
        self.top.release(entry)

    def give_back_all(self, entries: Sequence[Entry], last_use: Event) -> None:
        """Release entries of the top tier that are resident, coming or failed."""
        if last_use is not None:
            self._last_use.update((entry.slot, last_use) for entry in entries)
        self.top.release_all(entries)

    def mark_use(self) -> Event:
        """The end of all compute that this thread has queued on the device."""
        return None if self._device is None else self._device.device.mark()

    def evict(self, key: ExpertKey) -> bool:
        """Drop an expert from every tier; False if it is in none, or in use or pinned."""
        if self.top.is_held(key):  # a copy of it in a slower tier is spare, and no loss to speak of
            return False
        dropped = [tier.evict(key) for _, tier in self.tiers]
        if self._device is not None and dropped[0]:
            self._on_moved(key, None)
        return any(dropped)

    def rebuild_device(self, device: DeviceSlots) -> None:
        """Another number of device slots; the tier is quiet, and empty afterwards. Pins are kept.

        Raises:
            BudgetError: the memory could not be allocated; the tier has its old size then, and is empty.
        """
        assert self._device is not None
        old, pinned, counts = self._device, self.device.pinned, (self.device.evictions, self.device.wasted)
        for key in list(self.device.resident):
            self._on_moved(key, None)
            self.host.mark_spare(key, is_spare=False)
        del self.device_arena  # before the new one is allocated
        try:
            self._make_device_tier(device, *counts)
        except BudgetError:
            self._make_device_tier(old, *counts)
            raise
        finally:
            for key in pinned:
                self.device.pin(key)

    def resize_host(self, num_slots: int) -> None:
        """Another number of host slots; those in use leave when their leases end."""
        self.host.resize(num_slots)
        self._count_shares()

    def most_held(self, layer: int, num_asked: int, hits: int) -> int:
        """Slots that a lease of a layer takes at once."""
        return most_held(num_asked, self._shares[layer], hits)

    def check_integrity(self) -> None:
        for _, tier in self.tiers:
            tier.check_integrity()

    def _make_device_tier(self, device: DeviceSlots, evictions: int = 0, wasted: int = 0) -> None:
        memory = device.device.allocate(device.num_slots * self.layout.slot_bytes)
        self.device_arena = DeviceArena(self.layout, memory)
        self.device = Tier(device.num_slots, self._make_policy(device.num_slots))
        self.device.evictions, self.device.wasted = evictions, wasted
        self._device = device
        self._last_use.clear()
        self._count_shares()

    def _make_policy(self, num_slots: int) -> Policy:
        return make_policy(self._policy, num_slots, self._experts_per_layer)

    def _count_shares(self) -> None:
        self._shares = share_out(self.top.num_slots, self._experts_per_layer)

    def _fetch_to_host(self, key: ExpertKey, ahead: bool) -> Entry | None:
        entry = self.host.reserve(key)
        if entry is not None:
            self._start_read(entry, self.host_arena, ahead)
        return entry

    def _pass_on(self, below: Entry, error: Exception | None) -> None:
        """A host entry has its bytes, or never will: so has the device entry that waits for it."""
        entry = self._arriving.pop(below.key, None)
        if entry is None:
            return
        if error is None:
            self._copy_up(entry, below)
        else:
            self.device.finish(entry, error)
            self.host.release(below)

    def _copy_up(self, entry: Entry, below: Entry) -> None:
        """Host to device; the host entry stays leased until the bytes are over."""
        assert self._device is not None

        def queued(event: Event) -> None:
            entry.arrival = event
            self.device.finish(entry)
            self._on_moved(entry.key, entry.slot)

        def done(error: Exception | None, seconds: float) -> None:
            if error is None:
                self._on_copied("host", "device", self.layout.slot_bytes, seconds)
                self.host.mark_spare(entry.key, is_spare=self.device.find(entry.key) is entry)
            elif entry.state is State.LOADING:  # after it was queued, compute itself meets the device's error
                self.device.finish(entry, error)
            self.host.release(below)

        source, target = self.host_arena.tensor_of(below.slot), self.device_arena.tensor_of(entry.slot)
        self._submit(source, target, entry.slot, queued, done)

    def _write_back(self, victim: ExpertKey, device_slot: int) -> None:
        """What is in a device slot goes down, before another expert enters it."""
        below = self.host.reserve(victim)
        if below is None:  # every host slot is in use; the disk has it
            return

        def done(error: Exception | None, seconds: float) -> None:
            self.host.finish(below, error)
            if error is None:
                self._on_copied("device", "host", self.layout.slot_bytes, seconds)
            self._pass_on(below, error)
            self.host.release(below)

        source, target = self.device_arena.tensor_of(device_slot), self.host_arena.tensor_of(below.slot)
        self._submit(source, target, device_slot, lambda _: None, done)

    def _submit(
        self,
        source: torch.Tensor,
        target: torch.Tensor,
        device_slot: int,
        queued: Callable[[Event], None],
        done: Callable[[Exception | None, float], None],
    ) -> None:
        assert self._device is not None
        started = time.perf_counter()
        self._device.copier.submit(
            CopyJob(
                source,
                target,
                self._last_use.get(device_slot),
                lambda event: self._locked(lambda: queued(event)),
                lambda error: self._locked(lambda: done(error, time.perf_counter() - started)),
            )
        )

    def _retire(self, slot: int) -> None:
        if self._device is not None:
            self._device.device.unpin(self.host_arena, slot)
        self.host_arena.retire(slot)
