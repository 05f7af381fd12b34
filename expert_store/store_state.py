"""State that an ExpertStore and its leases share: the pools, the lock, and counters of requests."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch

from expert_store.catalog import ExpertCatalog, ExpertLayout
from expert_store.disk_cache.places import is_remote
from expert_store.entry import Entry
from expert_store.errors import BudgetError, ExpertLoadError
from expert_store.io.device_memory import Device
from expert_store.io.reader import Priority
from expert_store.keys import ExpertKey
from expert_store.layout_pool import LayoutPool
from expert_store.load_balance import LoadBalance
from expert_store.resources import open_resources
from expert_store.routing_log.recent_window import RecentWindow
from expert_store.slot_budget import slots_per_layout
from expert_store.sources.open_sources import OpenSources
from expert_store.statistics import Phase
from expert_store.store_lock import StoreLock
from expert_store.tier import Tier


class StoreState:
    """The pools of a store, and the counters of its leases. Methods expect ``lock`` to be held.

    Raises:
        BudgetError: a budget holds less than one slot of each layout, or can't be allocated.
        SourceError: a file can't be opened.
        ValueError: no policy has this name, or encoded experts are to be copied to a device.
    """

    def __init__(
        self,
        catalog: ExpertCatalog,
        host_bytes: int,
        device_bytes: int,
        *,
        device: torch.device,
        num_readers: int,
        policy: str,
    ):
        if device_bytes and any(entry.encoding is not None for entry in catalog.layers.values()):
            raise ValueError("experts that are encoded for their slots can't be copied to a device")
        host_slots = slots_per_layout(catalog, host_bytes)
        device_slots = slots_per_layout(catalog, device_bytes) if device_bytes else dict.fromkeys(catalog.layouts, 0)
        self._resources = resources = open_resources(catalog, device, num_readers, has_device_tier=bool(device_bytes))
        self.lock, self.reader = resources.lock, resources.reader
        self.statistics, self.slot_table = resources.statistics, resources.slot_table
        self.quarantined = resources.quarantined
        try:
            self.pools = [
                LayoutPool(layout, resources, policy, host_slots[layout], device_slots[layout])
                for layout in catalog.layouts
            ]
        except Exception:
            resources.close()
            raise
        by_layout = {pool.layout: pool for pool in self.pools}
        self.pool_of = {layer: by_layout[entry.layout] for layer, entry in catalog.layers.items()}
        self.windows = {pool: RecentWindow(_residents_of(pool)) for pool in self.pools}
        self.balance = LoadBalance({layer: len(entry.experts) for layer, entry in catalog.layers.items()})
        self.keys = {
            layer: [ExpertKey(layer, expert) for expert in range(len(entry.experts))]
            for layer, entry in catalog.layers.items()
        }
        self.on_starvation: Callable[[], None] = lambda: None  # see ``ExpertStore.on_starvation``
        self.next_device_slots: Mapping[ExpertLayout, int] | None = None  # while a resize of the device tier waits
        # The rows of that array; to count one by one in a memoryview takes half the time of counting in numpy.
        self._tokens = {layer: row.data for layer, row in zip(catalog.layers, self.statistics.tokens, strict=True)}

    @property
    def catalog(self) -> ExpertCatalog:
        """The catalog, which is another one after a variant has come or gone."""
        return self._resources.catalog

    def add_variant(self, variant: str, catalog: ExpertCatalog, sources: OpenSources) -> None:
        """Make a variant's experts known, by the catalog that has them."""
        self._resources.catalog = catalog
        self._resources.sources[variant] = sources
        self._update_experts()

    def remove_variant(self, variant: str) -> None:
        """Forget a variant and its experts; those that are in use go when they are not any more.

        Raises:
            ValueError: there is no such variant.
        """
        if variant not in self.catalog.variants:
            raise ValueError(f"there is no variant {variant!r}")
        for place in self.catalog.variants[variant]:
            key = ExpertKey(*place, variant)
            self.pool_of[key.layer].discard(key)
            self.quarantined.pop(key, None)
        self._resources.catalog = self.catalog.without_variant(variant)
        self._resources.sources.pop(variant).close()
        self._update_experts()

    def _update_experts(self) -> None:
        for pool in self.pools:
            pool.update_experts()

    def takes(self, priority: Priority) -> bool:
        """Return True if a read would find the disk idle, or soon, and no resize waits for the end of all loads."""
        return self.next_device_slots is None and self.reader.takes(priority)

    def layer_of(self, keys: Sequence[ExpertKey]) -> int:
        """Return the one layer of some experts.

        Raises:
            ValueError: they are of several layers, or of one that the model does not have.
        """
        layers = {key[0] for key in keys}
        if len(layers) > 1:
            raise ValueError(f"a lease is of one layer, not of layers {sorted(layers)}; take one for each")
        layer = keys[0].layer
        if layer not in self.pool_of:
            raise ValueError(f"the model has no experts in layer {layer}")
        return layer

    def refuse_unknown(self, keys: Iterable[ExpertKey]) -> None:
        """Raise ValueError if the model lacks one of the experts."""
        for key in keys:
            self.catalog.recipe(key)

    def refuse_removed(self, key: ExpertKey) -> None:
        """Raise ExpertLoadError if the variant of an expert that was leased is no longer there."""
        if not self.catalog.has(key):
            raise ExpertLoadError(key, "the variant was removed")

    def refuse_quarantined(self, keys: Iterable[ExpertKey]) -> None:
        """Raise ExpertLoadError if one of the experts is known to be damaged."""
        if self.quarantined:
            for key in keys:
                if key in self.quarantined:
                    raise ExpertLoadError(key, self.quarantined[key])

    def count_tokens(self, layer: int, rows: Mapping[ExpertKey, int]) -> None:
        tokens = self._tokens[layer]
        for key, count in rows.items():
            if key.variant in self.catalog.variants:
                self.statistics.variant_tokens[key.variant] += count
                if key.expert >= len(self.keys[layer]):
                    continue
            tokens[key.expert] += count

    def count_hits(self, pool: LayoutPool, requested: tuple[ExpertKey, ...], phase: Phase) -> None:
        """Count look-ups that all found their experts in the top tier."""
        self.statistics.lookups[pool.top_name, phase] += len(requested)
        self.windows[pool].record(requested, len(requested))

    def count_lookups(
        self,
        pool: LayoutPool,
        requested: tuple[ExpertKey, ...],
        ready: Collection[Entry],
        waiting: Collection[ExpertKey],
        phase: Phase,
    ) -> tuple[dict[ExpertKey, bool], set[ExpertKey]]:
        """Count where experts were found, before their lease moves any.

        Args:
            waiting: experts that the lease does not hold yet.

        Returns:
            Those that were in no tier, and whether they were on no disk either; and those of ``waiting`` in a slower
            tier, which are not counted yet, since they may be evicted from it before the lease loads them.
        """
        lookups, hits = self.statistics.lookups, len(ready)
        missed: dict[ExpertKey, bool] = {}
        uncounted: set[ExpertKey] = set()
        lookups[pool.top_name, phase] += hits
        if hits < len(requested):
            found = {entry.key for entry in ready}
            for key in requested:
                if key not in found:
                    where = pool.where(key)
                    if where != "disk" and key in waiting:
                        uncounted.add(key)
                        continue
                    lookups[where, phase] += 1
                    if where == "disk":
                        missed[key] = self.count_place(key, phase)
        self.windows[pool].record(requested, len(requested) - len(missed))
        return missed, uncounted

    def count_place(self, key: ExpertKey, phase: Phase) -> bool:
        """Count the look-up of an expert in no tier of memory if it is on no disk either; return whether it is so."""
        is_far = is_remote(self.catalog, key)
        self.statistics.remote_lookups[phase] += is_far
        return is_far

    def resize_device(self, slots: Mapping[ExpertLayout, int]) -> None:
        """Change the number of device slots of each layout, as soon as none of them is in use.

        Leases that begin meanwhile wait.

        Raises:
            BudgetError: the memory could not be allocated; the tier is empty then, and of its old size if possible.
        """
        pools = [pool for pool in self.pools if pool.has_device]
        self.next_device_slots = slots
        try:
            while not all(pool.is_device_idle for pool in pools):
                self.lock.wait()
            _rebuild_device(pools, slots, self._resources.device, self.lock)
            for pool in pools:
                self.windows[pool].restart()
        finally:
            self.next_device_slots = None
            self.lock.wake_waiters()

    def resize_host(self, slots: Mapping[ExpertLayout, int]) -> None:
        """Change the number of host slots of each layout; those in use are retired when their leases end."""
        for pool in self.pools:
            pool.resize_host(slots[pool.layout])
            self.windows[pool].restart()

    def close(self) -> None:
        """Wake all threads that wait, and stop the store's own threads; the lock is not held."""
        self.lock.close()
        self._resources.close()


def _rebuild_device(
    pools: Sequence[LayoutPool], slots: Mapping[ExpertLayout, int], device: Device, lock: StoreLock
) -> None:
    """Allocate the device tier anew, all layouts after all were freed, as one may grow by what another gives up."""
    old = {pool: pool.device.num_slots for pool in pools}
    for pool in pools:
        pool.free_device()
    device.give_back()
    try:
        for pool in pools:
            pool.allocate_device(slots[pool.layout])
    except BudgetError:
        try:
            for pool in pools:
                if pool.device.num_slots:
                    pool.free_device()
                _allocate_at_most(pool, old[pool])
        except BudgetError as error:
            lock.fail(f"the memory of the device tier is gone: {error}")
        raise


def _allocate_at_most(pool: LayoutPool, num_slots: int) -> None:
    """Allocate so many slots or, if others took the memory meanwhile, fewer that still hold the pins."""
    least = len(pool.device.pinned) + 1
    while True:
        try:
            pool.allocate_device(num_slots)
        except BudgetError:
            if num_slots <= least:
                raise
            num_slots = max(least, num_slots // 2)
        else:
            return


def _residents_of(pool: LayoutPool) -> Callable[[], frozenset[ExpertKey]]:
    """Return a function that returns the residents of all tiers; it builds the set anew only after a change."""
    known: frozenset[ExpertKey] = frozenset()
    changes: list[tuple[Tier, int]] = []

    def residents() -> frozenset[ExpertKey]:
        nonlocal known, changes
        now = [(tier, tier.num_changes) for _, tier in pool.tiers]
        if now != changes:
            known, changes = frozenset(key for tier, _ in now for key in tier.resident), now
        return known

    return residents
