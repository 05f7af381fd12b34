"""StoreReports: the contents and the counters of a store."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from expert_store.catalog import ExpertCatalog
from expert_store.entry import TierName
from expert_store.keys import ExpertKey
from expert_store.layout_pool import LayoutPool
from expert_store.load_balance import LayerBalance
from expert_store.routing_log.recent_window import Window
from expert_store.statistics import HitRatios, StoreHealth, StoreStatistics, TierReport
from expert_store.store_budgets import StoreBudgets
from expert_store.store_state import StoreState
from expert_store.tier import Tier


class StoreReports:
    """The part of ``ExpertStore`` that changes nothing: reports of what it holds and of what it counted."""

    def __init__(self, state: StoreState, budgets: StoreBudgets):
        self._state, self._budgets = state, budgets
        self._rated: tuple[list[tuple[Window, int]], HitRatios] | None = None  # windows, their slots and ratios

    @property
    def catalog(self) -> ExpertCatalog:
        """The experts that may be leased now; another value after a variant has come or gone."""
        return self._state.catalog

    def hit_ratios(self) -> HitRatios | None:
        """Return the hit ratio of the recent window and Belady's optimum for it; None before the first lease.

        The optimum takes milliseconds, and is found again only if there is another window than at the last call.
        """
        state = self._state
        with state.lock:
            windows = [
                (window.recent, sum(tier.num_slots for _, tier in pool.tiers)) for pool, window in state.windows.items()
            ]
        lookups = sum(window.lookups for window, _ in windows)
        if not lookups:
            return None
        if self._rated is None or self._rated[0] != windows:
            best = sum(window.optimal_hits(num_slots) for window, num_slots in windows)
            hits = sum(window.hits for window, _ in windows)
            self._rated = windows, HitRatios(lookups, hits / lookups, best / lookups)
        return self._rated[1]

    def load_balance(self, statistics: StoreStatistics) -> Sequence[LayerBalance]:
        """Return the load balance of each layer over recent tokens; empty before there were enough of them.

        Args:
            statistics: those of now.
        """
        return self._state.balance.recent(statistics.tokens)

    @property
    def health(self) -> StoreHealth:
        """The state of the store's threads and files; it waits for no lock."""
        state = self._state
        if state.lock.failure is not None or state.reader.has_stuck_read:
            return "failing"
        return "files_changed" if state.reader.changed_sources else "ok"

    def residents(self) -> dict[ExpertKey, TierName]:
        """Return the experts that are in memory now, and the fastest tier of each."""
        with self._state.lock:
            tiers = [(name, list(tier.resident)) for pool in self._state.pools for name, tier in pool.tiers]
        found: dict[ExpertKey, TierName] = {}
        for name, resident in tiers:
            for key in resident:
                found.setdefault(key, name)
        return found

    @property
    def host_slot_bytes(self) -> int:
        """Bytes of the host tier's slots, those included that are retired when their leases end."""
        with self._state.lock:
            return sum((pool.host.num_slots + pool.host.excess) * pool.layout.slot_bytes for pool in self._state.pools)

    @property
    def host_resident_bytes(self) -> int:
        """Bytes of the host tier's slots whose experts are resident or loading."""
        with self._state.lock:
            return sum(pool.host.num_entries * pool.layout.slot_bytes for pool in self._state.pools)

    def tiers(self) -> dict[TierName, TierReport]:
        """Return a report of each tier as it is now, fastest first."""
        reports: dict[TierName, TierReport] = {}
        with self._state.lock:
            for pool in self._state.pools:
                for name, tier in pool.tiers:
                    slots, resident = tier.num_slots + tier.excess, len(list(tier.resident))
                    old = reports.get(name) or TierReport(name, self._budgets[name])
                    reports[name] = TierReport(
                        name,
                        self._budgets[name],
                        old.num_slots + slots,
                        old.slot_bytes + slots * pool.layout.slot_bytes,
                        old.num_resident + resident,
                        old.resident_bytes + resident * pool.layout.slot_bytes,
                        old.num_pinned + len(tier.pinned),
                    )
        return reports

    def layer_slots(self) -> dict[int, int]:
        """Return the number of experts of each layer that all tiers hold together when every layer has its share."""
        return self._shares(lambda tier: tier.num_slots)

    def layer_residents(self) -> dict[int, int]:
        """Return the number of experts of each layer that are in memory or loading, as if every layer had its share."""
        return self._shares(lambda tier: tier.num_entries)

    def _shares(self, count: Callable[[Tier], int]) -> dict[int, int]:
        """Return the share of each layer in a count of experts in all tiers."""
        with self._state.lock:
            counts = {pool: sum(count(tier) for _, tier in pool.tiers) for pool in self._state.pools}
            pool_of, num_places = dict(self._state.pool_of), self.catalog.num_places
        return {
            layer: min(len(entry.experts), counts[pool_of[layer]] * len(entry.experts) // num_places[entry.layout])
            for layer, entry in self.catalog.layers.items()
        }

    def holds_at_once(self, layers: Sequence[int], spare: int = 0) -> bool:
        """Return True if the fastest tier has a slot for every expert of some layers at the same time.

        Args:
            spare: slots beside them, unless all experts have one.
        """
        state, num_experts = self._state, dict[LayoutPool, int]()
        with state.lock:
            for layer in layers:
                pool = state.pool_of[layer]
                num_experts[pool] = num_experts.get(pool, 0) + len(state.keys[layer])
            return all(
                min(count + spare, self.catalog.num_places[pool.layout])
                <= pool.top.num_slots - sum(key.layer not in layers for key in pool.top.pinned)
                for pool, count in num_experts.items()
            )

    def statistics(self) -> StoreStatistics:
        """Return a copy of the counters."""
        state = self._state
        with state.lock:
            statistics = copy.deepcopy(state.statistics)
            for pool in state.pools:
                for name, tier in pool.tiers:
                    statistics.evictions[name] = statistics.evictions.get(name, 0) + tier.evictions
                statistics.prefetches["wasted"] += pool.top.wasted
        return statistics
