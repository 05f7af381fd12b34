"""ExpertStore: experts by lease, from device, memory or disk."""

from __future__ import annotations

import copy
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence

import torch

from .backstage import Backstage
from .budget import share_slots
from .catalog import ExpertCatalog, ExpertLayout
from .errors import BudgetError, StoreClosedError
from .keys import ExpertKey
from .lease import Lease, Recorder
from .pool import TierName
from .statistics import HitRatios, Phase, StoreStatistics, TierReport
from .step_lease import Residents, StepLease

NUM_READERS = 6  # sleeping in the kernel they cost compute nothing, and they fill a disk's queue
CPU = torch.device("cpu")


class ExpertStore:
    """The experts of one model: slots on a device over slots in memory over the checkpoint's files.

    Any thread may lease. Without a device tier compute reads the host tier's slots in place.

    Args:
        catalog: where each expert's bytes are.
        host_bytes: budget of the host tier; slots never take more, however many are asked for.
        device_bytes: budget of the device tier; 0 is none. On a CPU it is an emulation, of use for tests.
        device: of the device tier.
        num_readers: threads that read from disk.
        policy: which expert goes first; one of ``policies.POLICIES``.
        least_unpinned: slots of each layout that pins have to leave to others; a layer's top-k, say.
        recorder: is told of every lease.

    Raises:
        BudgetError: a budget has no room for one slot of each layout, or can't be allocated.
        OSError: a file can't be opened.
        ValueError: there is no such policy.
    """

    def __init__(
        self,
        catalog: ExpertCatalog,
        host_bytes: int,
        *,
        device_bytes: int = 0,
        device: torch.device = CPU,
        num_readers: int = NUM_READERS,
        policy: str = "lfru",
        least_unpinned: int = 1,
        recorder: Recorder | None = None,
    ):
        self.catalog = catalog
        self._budgets: dict[TierName, int] = {"device": device_bytes, "host": host_bytes}
        self._least_unpinned = least_unpinned
        self._recorder = recorder
        self._backstage = Backstage(catalog, host_bytes, device_bytes, device, num_readers, policy)
        self._residents = Residents(self._backstage)
        # A store that is forgotten stops its threads, too; at the program's end they would bring it down.
        self._finalizer = weakref.finalize(self, self._backstage.close)

    def lease(self, rows: Mapping[ExpertKey, int], phase: Phase = "decode") -> Lease:
        """Lease experts of one layer: ``rows`` tells for each how many tokens will be run through it."""
        return Lease(self._backstage, rows, phase, self._recorder)

    def hold_residents(self) -> StepLease | None:
        """Lease all experts of all layers for a step, to be left as a context manager; None unless all are in memory.

        That is the host's memory: of a store with a device tier it is always None. It takes microseconds either way, so
        it may be asked for at each step.
        """
        with self._backstage.changed:
            addresses = self._residents.keep()
        return None if addresses is None else StepLease(self._backstage, self._residents, addresses, self._recorder)

    def prefetch(self, layer: int, experts: Iterable[int]) -> int:
        """Ask for experts that will be leased soon, the likeliest first; tells how many are on their way.

        Only while the disk would be idle: demands come first. Nothing that is leased, pinned or among these experts
        goes for them.
        """
        backstage, started = self._backstage, 0
        with backstage.changed:
            pool = backstage.pool_of[layer]
            keys = [backstage.keys[layer][expert] for expert in experts]
            held = [pool.top.hold(key) for key in keys]
            for key, entry in zip(keys, held, strict=True):
                if entry is not None or key in backstage.quarantined:
                    continue
                if backstage.is_closed or not backstage.reader.takes_prefetches:
                    break
                fetched = backstage.fetch(key, ahead=True)
                if fetched is None:
                    break
                pool.give_back(fetched)
                started += 1
            for entry in held:
                if entry is not None:
                    pool.give_back(entry)
        return started

    def fetch(self, keys: Iterable[ExpertKey], timeout_seconds: float) -> int:
        """Prefetch experts of any layer, each as soon as the disk would be idle; tells how many reads were begun.

        Those that are in the fastest tier or on their way, or quarantined, are left out; so is what finds no slot that
        may be taken, and what would only push out others of these experts.

        Args:
            timeout_seconds: after it the rest is left out, too.

        Raises:
            StoreClosedError: the store was closed meanwhile.
        """
        backstage, started = self._backstage, 0
        ends_at = time.monotonic() + timeout_seconds
        with backstage.changed:
            room = {pool: pool.top.num_slots - len(pool.top.pinned) for pool in backstage.pools}
            for key in keys:
                while not backstage.reader.takes_prefetches and (left := ends_at - time.monotonic()) > 0:
                    backstage.wait(left)
                if backstage.is_closed or not backstage.reader.takes_prefetches:
                    break
                pool = backstage.pool_of[key.layer]
                if not room[pool] or pool.top.find(key) is not None or key in backstage.quarantined:
                    continue
                fetched = backstage.fetch(key, ahead=True)
                if fetched is not None:
                    pool.give_back(fetched)
                    room[pool] -= 1
                    started += 1
        return started

    def pin(self, keys: Sequence[ExpertKey]) -> int:
        """Keep experts in the fastest tier; those that are not there are asked for, and stay once they have come.

        Returns:
            How many were not pinned already.

        Raises:
            BudgetError: too few slots would be left; nothing is pinned then.
            ExpertLoadError: one is quarantined; nothing is pinned then.
            ValueError: the model has no such expert; nothing is pinned then.
        """
        backstage = self._backstage
        backstage.refuse_unknown(keys)
        with backstage.changed:
            backstage.refuse_quarantined(keys)
            for pool in backstage.pools:
                asked = {key for key in keys if backstage.pool_of[key.layer] is pool}
                _check_pins(pool.top.pinned | asked, pool.top.num_slots, self._least_unpinned)
            num_new = 0
            for key in keys:
                pool = backstage.pool_of[key.layer]
                num_new += pool.top.pin(key)
                entry = None if pool.top.find(key) else backstage.fetch(key)
                if entry is not None:
                    pool.give_back(entry)
        return num_new

    def unpin(self, keys: Iterable[ExpertKey]) -> int:
        """Let experts be evicted again; tells how many were pinned."""
        with self._backstage.changed:
            num_pinned = sum(self._backstage.pool_of[key.layer].top.unpin(key) for key in keys)
            self._backstage.wake()
        return num_pinned

    def evict(self, keys: Iterable[ExpertKey]) -> int:
        """Drop experts from all tiers; tells how many were there and neither in use nor pinned."""
        with self._backstage.changed:
            return sum(self._backstage.pool_of[key.layer].evict(key) for key in keys)

    def resize(self, *, host_bytes: int | None = None, device_bytes: int | None = None) -> None:
        """Change budgets while leases come and go.

        The host tier grows and shrinks slot by slot; slots in use leave when their leases end. The device tier is
        emptied and allocated anew as soon as nothing in it is in use.

        Raises:
            BudgetError: a budget has no room for one slot of each layout and the pins, or can't be allocated.
        """
        if host_bytes is not None:
            slots = share_slots(self.catalog, host_bytes)
            with self._backstage.changed:
                self._check_pins("host", slots)
                for pool in self._backstage.pools:
                    capacity = pool.host_arena.capacity
                    if slots[pool.layout] > capacity:
                        raise BudgetError(f"no more than {capacity} slots could be reserved when the store was opened")
                self._backstage.resize_host(slots)
                self._budgets["host"] = host_bytes
                self._backstage.wake()
        if device_bytes is not None:
            if not self._budgets["device"]:
                raise BudgetError("the store was opened without a device tier; give --device-expert-memory at start")
            slots = share_slots(self.catalog, device_bytes)
            with self._backstage.changed:
                self._check_pins("device", slots)
                self._backstage.resize_device(slots)
                self._budgets["device"] = device_bytes
                self._backstage.wake()

    @property
    def holds_all(self) -> bool:
        """True if the fastest tier has a slot for every expert."""
        with self._backstage.changed:
            return all(pool.top.num_slots >= len(list(pool.experts)) for pool in self._backstage.pools)

    def absent(self) -> list[ExpertKey]:
        """Experts that are neither in the fastest tier nor on their way to it, without quarantined ones.

        Raises:
            StoreClosedError: the store was closed.
        """
        backstage = self._backstage
        with backstage.changed:
            if backstage.is_closed:
                raise StoreClosedError("the expert store was closed")
            return [
                key
                for pool in backstage.pools
                for key in pool.experts
                if pool.top.find(key) is None and key not in backstage.quarantined
            ]

    def hit_ratios(self) -> HitRatios | None:
        """The recent window's hit ratio beside Belady's optimum from the same start; None before the first lease."""
        backstage = self._backstage
        with backstage.changed:
            windows = [
                (window.recent, sum(tier.num_slots for _, tier in pool.tiers))
                for pool, window in backstage.windows.items()
            ]
        lookups = sum(window.lookups for window, _ in windows)
        if not lookups:
            return None
        best = sum(window.optimal_hits(num_slots) for window, num_slots in windows)
        return HitRatios(lookups, sum(window.hits for window, _ in windows) / lookups, best / lookups)

    @property
    def slot_table(self) -> torch.Tensor:
        """int32 ``(layers, experts)`` on the device: the slot of each expert in the arena of its layout, or -1."""
        return self._backstage.slot_table

    @property
    def quarantined(self) -> dict[ExpertKey, str]:
        """Experts whose bytes are damaged, and what is wrong with each."""
        with self._backstage.changed:
            return dict(self._backstage.quarantined)

    @property
    def pinned(self) -> frozenset[ExpertKey]:
        """Experts that are kept, also those that are still to come."""
        with self._backstage.changed:
            return frozenset[ExpertKey]().union(*(pool.top.pinned for pool in self._backstage.pools))

    def residents(self) -> dict[ExpertKey, TierName]:
        """The experts that are in memory now, and the fastest tier of each."""
        with self._backstage.changed:
            tiers = [(name, list(tier.resident)) for pool in self._backstage.pools for name, tier in pool.tiers]
        found: dict[ExpertKey, TierName] = {}
        for name, resident in tiers:
            for key in resident:
                found.setdefault(key, name)
        return found

    @property
    def host_slot_bytes(self) -> int:
        """Bytes of the host tier's slots, those included that leave when their leases end."""
        with self._backstage.changed:
            return sum(
                (pool.host.num_slots + pool.host.excess) * pool.layout.slot_bytes for pool in self._backstage.pools
            )

    @property
    def host_resident_bytes(self) -> int:
        """Bytes of the host tier's slots that hold an expert, or are about to."""
        with self._backstage.changed:
            return sum(pool.host.num_entries * pool.layout.slot_bytes for pool in self._backstage.pools)

    def tiers(self) -> dict[TierName, TierReport]:
        """The tiers as they are now, fastest first."""
        reports: dict[TierName, TierReport] = {}
        with self._backstage.changed:
            for pool in self._backstage.pools:
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
        """How many experts of each layer all tiers hold together, when every layer has its share."""
        with self._backstage.changed:
            slots = {pool: sum(tier.num_slots for _, tier in pool.tiers) for pool in self._backstage.pools}
            pool_of = dict(self._backstage.pool_of)
        return {
            layer: min(
                len(entry.experts), slots[pool_of[layer]] * len(entry.experts) // self.catalog.layouts[entry.layout]
            )
            for layer, entry in self.catalog.layers.items()
        }

    def statistics(self) -> StoreStatistics:
        """A copy of the counters."""
        backstage = self._backstage
        with backstage.changed:
            statistics = copy.deepcopy(backstage.statistics)
            for pool in backstage.pools:
                for name, tier in pool.tiers:
                    statistics.evictions[name] = statistics.evictions.get(name, 0) + tier.evictions
                statistics.prefetches["wasted"] += pool.top.wasted
        return statistics

    def check_integrity(self) -> None:
        """Raise AssertionError if a slot is lost or used twice."""
        with self._backstage.changed:
            for pool in self._backstage.pools:
                pool.check_integrity()

    def close(self) -> None:
        """Stop reading; whoever waits gets StoreClosedError."""
        self._finalizer()

    def _check_pins(self, tier: TierName, slots: Mapping[ExpertLayout, int]) -> None:
        for pool in self._backstage.pools:
            _check_pins(dict(pool.tiers)[tier].pinned, slots[pool.layout], self._least_unpinned)


def _check_pins(pinned: frozenset[ExpertKey], num_slots: int, least_unpinned: int) -> None:
    if pinned and num_slots - len(pinned) < least_unpinned:
        raise BudgetError(
            f"{len(pinned)} pinned experts leave fewer than {least_unpinned} of {num_slots} slots to the others; "
            "unpin some or give more memory"
        )
