"""The slots of one layout in each tier: their memory, the policies that replace experts in them, and their numbers."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from expert_store.arena import DeviceArena, HostArena, Weights, machine_bytes
from expert_store.catalog import ExpertLayout
from expert_store.entry import Entry, EntryState, TierName
from expert_store.io.device_memory import Event
from expert_store.keys import BASE, ExpertKey
from expert_store.policies import make_policy
from expert_store.policies.fair import FairPolicy, slots_per_layer
from expert_store.resources import StoreResources
from expert_store.tier import Tier, max_held


class LayoutTiers:
    """Slots of one layout in each tier.

    Methods expect the store's lock to be held, but for ``weights``, ``addresses``, ``slots`` and ``arena``, which touch
    only what a lease holds.

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
        self._num_own = {layer: len(entry.experts) for layer, entry in catalog.layers.items() if entry.layout == layout}
        self._policies: dict[TierName, FairPolicy] = {}
        self._rows = {layer: row for row, layer in enumerate(catalog.layers)}  # rows of the slot table
        # By layer and expert, those on the device whose copies may still go on.
        self._arriving: dict[int, dict[int, Entry]] = {layer: {} for layer in self._num_own}
        capacity = max(sum(self._num_own.values()), machine_bytes() // layout.slot_bytes)
        self.host_arena = HostArena(layout, host_slots, capacity)
        self.host = Tier(host_slots, self._make_policy("host", host_slots), self._retire, self.host_arena.revive)
        self.top, self.top_name = self.host, "host"
        self._last_use: dict[int, Event] = {}  # by device slot: the event before which it is not overwritten
        self._last_use_of_all: Event = None  # the same for slots without an event of their own
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

    def addresses(self, entries: Sequence[Entry]) -> array[int]:
        """Return the addresses of the slots of ready entries of the top tier, in the memory of that tier."""
        self.order(entries)
        first, slot_bytes = self.arena_address, self.layout.slot_bytes
        return array("Q", [first + entry.slot * slot_bytes for entry in entries])

    def host_addresses(self, entries: Sequence[Entry]) -> array[int]:
        """Return the addresses of the slots of entries of the host tier."""
        first, slot_bytes = self.host_arena.address, self.layout.slot_bytes
        return array("Q", [first + entry.slot * slot_bytes for entry in entries])

    def slots(self, entries: Sequence[Entry]) -> npt.NDArray[np.int64]:
        """Return the slots of ready entries of the top tier, in ``arena``."""
        self.order(entries)
        return np.fromiter((entry.slot for entry in entries), np.int64, len(entries))

    def order(self, entries: Iterable[Entry]) -> None:
        """Make compute that is queued from now on wait for the copies that fill the slots of ready entries."""
        if self.has_device:
            for entry in entries:
                self._resources.device.order(entry.arrival)

    @property
    def arena_address(self) -> int:
        """The address of the first slot in ``arena``."""
        return self.device_arena.address if self.has_device else self.host_arena.address

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
        self._use_all(self._resources.device.mark())

    def _use_all(self, last_use: Event) -> None:
        """Note that no device slot may be overwritten before an event that comes after all earlier ones."""
        self._last_use, self._last_use_of_all = {}, last_use

    def _last_use_of(self, slot: int) -> Event:
        return self._last_use.get(slot, self._last_use_of_all)

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

    def max_held(self, layer: int, num_requested: int, hits: int, *, is_prompt: bool = False) -> int:
        """Return how many slots a lease of a layer holds at once.

        A step with pieces of prompts streams layers through a device that holds two of them, each of them whole.
        """
        if is_prompt and self.has_device and self.device.num_slots >= 2 * self._num_own[layer]:
            return num_requested
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

    def slots_of_layer(self, layer: int) -> npt.NDArray[np.int32]:
        """Return the slot of each expert of a layer on the device, -1 for those whose copies have not ended."""
        slots = self._resources.slot_table[self._rows[layer], : self._num_own[layer]].copy()
        arriving = self._arriving[layer]
        for expert, entry in list(arriving.items()):
            if self._resources.device.has_ended(entry.arrival):
                del arriving[expert]
            else:
                slots[expert] = -1
        return slots

    def _note_slot(self, key: ExpertKey, entry: Entry | None) -> None:
        """Enter an expert's slot in the device tier into the slot table; None if it has left the tier."""
        if key.variant != BASE:
            return
        self._resources.slot_table[self._rows[key.layer], key.expert] = -1 if entry is None else entry.slot
        if entry is None:
            self._arriving[key.layer].pop(key.expert, None)
        else:
            self._arriving[key.layer][key.expert] = entry

    def _retire(self, slot: int) -> None:
        self._resources.device.unpin(self.host_arena, slot)
        self.host_arena.retire(slot)
