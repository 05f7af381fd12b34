"""StoreBudgets: the bytes that the tiers of a store may take, the slots that they hold, and the pins that must fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from expert_store.catalog import ExpertCatalog, ExpertLayout
from expert_store.entry import TierName
from expert_store.errors import BudgetError
from expert_store.keys import ExpertKey
from expert_store.slot_budget import share_of_layouts, slots_per_layout
from expert_store.store_state import StoreState

Slots = Mapping[ExpertLayout, int]


class StoreBudgets:
    """The budgets of a store's tiers. Methods expect the store's lock to be held.

    Args:
        state: the pools.
        host_bytes: budget of the host tier.
        device_bytes: budget of the device tier; 0 for none.
        least_unpinned: slots of each layout that pins have to leave to others.
    """

    def __init__(self, state: StoreState, host_bytes: int, device_bytes: int, least_unpinned: int):
        self._state, self._least_unpinned = state, least_unpinned
        self._bytes: dict[TierName, int] = {"device": device_bytes, "host": host_bytes}

    def __getitem__(self, tier: TierName) -> int:
        """Return the budget of a tier in bytes."""
        return self._bytes[tier]

    def host_slots(self, catalog: ExpertCatalog, nbytes: int) -> Slots:
        """Return the slots of each layout that a budget of the host tier holds.

        Raises:
            BudgetError: they are too few for one of each layout or for the pins, or more than were reserved.
        """
        slots = slots_per_layout(catalog, nbytes)
        self._refuse_pins("host", slots)
        for pool in self._state.pools:
            capacity = pool.host_arena.capacity
            if slots[pool.layout] > capacity:
                raise BudgetError(
                    f"only {capacity} slots could be reserved when the store was opened; give less memory"
                )
        return slots

    def resize_host(self, nbytes: int) -> None:
        """Change the budget of the host tier; slots in use are retired when their leases end.

        Raises:
            BudgetError: see ``host_slots``.
        """
        self._state.resize_host(self.host_slots(self._state.catalog, nbytes))
        self._bytes["host"] = nbytes
        self._state.lock.wake_waiters()

    def resize_device(self, nbytes: int) -> None:
        """Change the budget of the device tier; waits until nothing in it is in use.

        Raises:
            BudgetError: it does not hold one slot of each layout and the pins, or can't be allocated.
        """
        if not self._bytes["device"]:
            raise BudgetError("the store was opened without a device tier; give --device-expert-memory at start")
        self._wait_for_device()
        self._rebuild_device(slots_per_layout(self._state.catalog, nbytes))
        self._bytes["device"] = nbytes

    def grow_device(self) -> None:
        """Let the device tier take its whole budget if there are experts that it has no slots for.

        The tier is emptied by this, so it is done once for all variants to come; it waits until nothing is in use.

        Raises:
            BudgetError: the slots would be too few for one of each layout or for the pins, or can't be allocated.
        """
        self._wait_for_device()
        state, budget = self._state, self._bytes["device"]
        taken = sum(pool.device.num_slots * pool.layout.slot_bytes for pool in state.pools if pool.has_device)
        rounding = sum(pool.layout.slot_bytes for pool in state.pools)
        if budget and min(budget, state.catalog.all_bytes) >= taken + rounding:
            self._rebuild_device(share_of_layouts(state.catalog, budget))

    def refuse_more_pins(self, keys: Iterable[ExpertKey]) -> None:
        """Raise BudgetError if pins of these experts, too, left too few slots, now or after a resize that waits."""
        state, following = self._state, self._state.next_device_slots
        for pool in state.pools:
            num_slots = pool.top.num_slots
            if following is not None and pool.has_device:
                num_slots = min(num_slots, following[pool.layout])
            added = {key for key in keys if state.pool_of[key.layer] is pool}
            self._refuse(pool.top.pinned | added, num_slots)

    def _wait_for_device(self) -> None:
        """Wait for the end of a resize of the device tier: one comes after the other."""
        while self._state.next_device_slots is not None:
            self._state.lock.wait()

    def _rebuild_device(self, slots: Slots) -> None:
        self._refuse_pins("device", slots)
        self._state.resize_device(slots)

    def _refuse_pins(self, tier: TierName, slots: Slots) -> None:
        for pool in self._state.pools:
            level = dict(pool.tiers).get(tier)
            if level is not None:
                self._refuse(level.pinned, slots[pool.layout])

    def _refuse(self, pinned: frozenset[ExpertKey], num_slots: int) -> None:
        if pinned and num_slots - len(pinned) < self._least_unpinned:
            raise BudgetError(
                f"{len(pinned)} pinned experts leave fewer than {self._least_unpinned} of {num_slots} slots to the "
                "others; unpin some or give more memory"
            )
