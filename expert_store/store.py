"""ExpertStore: experts by lease, from device, memory or disk."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

import numpy as np
import numpy.typing as npt
import torch

from expert_store.catalog import ExpertCatalog, Variant, sources_of
from expert_store.entry import EvictObstacle
from expert_store.errors import BudgetError, ExpertStoreError, StoreClosedError
from expert_store.io.reader import Priority
from expert_store.keys import ExpertKey
from expert_store.layer_hold import LayerHold
from expert_store.lease import Lease, Recorder
from expert_store.read_ahead import ReadAheadLease
from expert_store.sources.open_sources import OpenSources
from expert_store.statistics import Phase
from expert_store.step_lease import LayerKeys, ResidentAddresses, StepLease
from expert_store.store_budgets import StoreBudgets
from expert_store.store_reports import StoreReports
from expert_store.store_state import StoreState

NUM_READERS = 6  # enough to fill a disk's queue; they sleep in the kernel and take nothing from compute
CPU = torch.device("cpu")


def encoding_memory_bytes(catalog: ExpertCatalog) -> int:
    """Return the most bytes that a store's threads hold of experts that are encoded for their slots."""
    encodings = [entry.encoding for entry in catalog.layers.values() if entry.encoding is not None]
    return NUM_READERS * max((encoding.stored.slot_bytes for encoding in encodings), default=0)


class ExpertStore(StoreReports):
    """The experts of one model: slots on a device over slots in memory over the checkpoint's files.

    Any thread may lease. Without a device tier compute reads the host tier's slots in place.

    Args:
        catalog: where each expert's bytes are.
        host_bytes: budget of the host tier; its slots never take more.
        device_bytes: budget of the device tier; 0 for none. On a CPU the tier is emulated, which is of use for tests.
        device: the device of that tier.
        num_readers: threads that read from disk.
        policy: chooses which expert is evicted; one of ``policies.POLICIES``.
        least_unpinned: slots of each layout that pins have to leave to others; a layer's top-k, say.
        recorder: records every lease.

    Raises:
        BudgetError: a budget holds less than one slot of each layout, or can't be allocated.
        SourceError: a file can't be opened.
        ValueError: no policy has this name.
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
        self._recorder = recorder
        state = StoreState(catalog, host_bytes, device_bytes, device=device, num_readers=num_readers, policy=policy)
        super().__init__(state, StoreBudgets(state, host_bytes, device_bytes, least_unpinned))
        self._residents = ResidentAddresses(self._state)
        self._variant_residents = self._residents  # of the last step with variants
        self.on_growth: Callable[[], None] = lambda: None  # called after slots or experts were added
        # A store without references stops its threads, too; at interpreter exit they would crash the program.
        self._finalizer = weakref.finalize(self, self._state.close)

    def add_variant(self, variant: str, recipes: Variant) -> None:
        """Make another set of weights for some experts known; nothing is read yet.

        Slots are shared by all. If a budget holds more experts than there were, there are more slots from now on. A
        device tier is emptied for that, once: it takes its whole budget then, as soon as nothing in it is in use.

        Args:
            variant: the name that keys have, which may not be in use.
            recipes: by layer and expert, beyond the model's own experts too.

        Raises:
            BudgetError: the budget does not hold one slot of each layout and the pins any more.
            CheckpointError: an expert lacks a parameter, or its sources do not fill it.
            SourceError: a file can't be opened.
            StoreClosedError: the store was closed.
            ValueError: the name is in use, or a layer has no experts.
        """
        state, sources = self._state, OpenSources(sources_of(recipes.values()))
        try:
            with state.lock:
                state.lock.refuse_closed()
                catalog = self.catalog.with_variant(variant, recipes)
                slots = self._budgets.host_slots(catalog, self._budgets["host"])
                state.add_variant(variant, catalog, sources)
                state.resize_host(slots)
                with suppress(BudgetError):  # a smaller device tier serves all the same
                    self._budgets.grow_device()
                state.lock.wake_waiters()
        except (ExpertStoreError, ValueError):
            sources.close()
            raise
        self.on_growth()

    def remove_variant(self, variant: str) -> int:
        """Forget a variant, drop its experts from all tiers, and close its files after the last read.

        Leases keep the experts that they have to their end; those that wait for one get ExpertLoadError. The name may
        be used again at once. A device tier keeps its size.

        Returns:
            The rows that its experts were run on, which statistics forget.

        Raises:
            ValueError: there is no such variant.
        """
        with self._state.lock:
            self._state.remove_variant(variant)
            num_tokens = self._state.statistics.variant_tokens.pop(variant, 0)
            with suppress(BudgetError):  # fewer slots would not hold the pins of a layout; all stay as they were
                self._budgets.resize_host(self._budgets["host"])
            self._state.lock.wake_waiters()
        return num_tokens

    def lease(
        self,
        rows: Mapping[ExpertKey, int],
        phase: Phase = "decode",
        after: LayerHold | None = None,
        *,
        uses_host: bool = False,
    ) -> Lease:
        """Lease experts of one layer; ``rows`` has for each the number of tokens that will be run through it.

        Args:
            after: of the same layer; it ends when the lease is entered.
            uses_host: experts for which a device tier has no free slot stay in host memory (``Lease.on_host``).
        """
        return Lease(self._state, rows, phase, self._recorder, after, uses_host=uses_host)

    def lease_passing(self, rows: Mapping[ExpertKey, int]) -> Lease:
        """Lease experts of one layer for a pass over prompts, all of them at once; see ``Lease.wait``.

        The pass takes slots of the experts that it brought before, and few others: what it brings is evicted first,
        unless something else asks for it. Uses by a pass do not count for what is evicted.
        """
        return Lease(self._state, rows, "prefill", self._recorder, is_passing=True)

    def read_ahead(self, keys: Iterable[ExpertKey]) -> ReadAheadLease:
        """Return a context manager that reads and keeps experts that a pass over prompts will probably want next."""
        return ReadAheadLease(self._state, keys)

    def on_starvation(self, give_back: Callable[[], None]) -> None:
        """Call a function when a lease waits while others have all slots; in its thread, without the store's lock.

        What this thread leases for later may be given back, as after a budget has shrunk.
        """
        self._state.on_starvation = give_back

    def keep(self, keys: Sequence[ExpertKey]) -> None:
        """Count a use of those experts of one layer that are in memory, as decoding will want them."""
        if keys:
            with self._state.lock:
                self._state.pool_of[keys[0].layer].top.keep(keys)

    def hold_layer(self, layer: int) -> LayerHold | None:
        """Hold the experts of a layer that are on the device, before it is known which are needed.

        It is None while another lease waits for a slot, or a resize of the device tier for its turn.
        """
        state = self._state
        with state.lock:
            pool = state.pool_of[layer]
            if state.next_device_slots is not None or pool.queue.has_waiters:
                return None
            return LayerHold(state, layer, pool.slots_of_layer(layer))

    def arena(self, layer: int) -> torch.Tensor:
        """Return all slots of a layer's experts in the fastest tier, uint8 ``(slots, slot_bytes)``, as they are now."""
        with self._state.lock:
            return self._state.pool_of[layer].arena

    def hold_residents(
        self, keys: LayerKeys | None = None, *, needs_all: bool = False, overlaps: bool = False
    ) -> StepLease | None:
        """Lease the experts of all layers that are in the memory that compute reads, for a step.

        The result is a context manager. The call takes microseconds, so it may be made at each step, and again after a
        lease of experts that were missing. Such a lease waits for the end of this one if it has to evict.

        It is None while another lease waits for a slot, or a resize of the device tier for its turn.

        Args:
            keys: the experts of each layer, those of variants included; by default the model's own. Passing the same
                object again saves time.
            needs_all: return None unless all of them are in memory.
            overlaps: another one of the same keys is open; return None if an eviction waits for its end.
        """
        lock = self._state.lock
        lock.acquire()  # nothing that was deferred is needed
        try:
            residents = self._residents
            if keys is not None:
                if not self._variant_residents.is_of(keys):
                    self._variant_residents = ResidentAddresses(self._state, keys)
                residents = self._variant_residents
            if not residents.hold(needs_all=needs_all, overlaps=overlaps):
                return None
            return StepLease(self._state, residents, self._recorder)
        finally:
            lock.release()

    def prefetch(self, keys: Sequence[ExpertKey]) -> int:
        """Start reads of experts that will be leased soon, the likeliest first; return how many were started.

        Reads are started only while the disk would be idle, as demands come first. To copy an expert from host memory
        to a device takes no read. Experts that are leased, pinned or among these are not evicted for them.

        Args:
            keys: experts of one layer, at least one.
        """
        state, started = self._state, 0
        with state.lock:
            pool = state.pool_of[keys[0].layer]
            found = [pool.top.lease_without_use(key) for key in keys]
            for key, entry in zip(keys, found, strict=True):
                if entry is not None or key in state.quarantined:
                    continue
                if state.lock.is_closed or state.next_device_slots is not None:
                    break
                if not pool.only_copies(key) and not state.takes(Priority.PREFETCH):
                    if pool.has_device:
                        continue  # others may be in host memory
                    break
                loading = pool.load(key, priority=Priority.PREFETCH)
                if loading is None:
                    break
                pool.release(loading)
                started += 1
            for entry in found:
                if entry is not None:
                    pool.release(entry)
        return started

    def preload(self, keys: Iterable[ExpertKey], timeout_seconds: float) -> int:
        """Read experts of any layer, each as soon as the disk would be idle; return how many reads were started.

        Demands and prefetches go first.

        Experts are left out that are in the fastest tier, loading or quarantined, that find no slot to take, that
        would only evict others of these, or whose variant was removed.

        Args:
            timeout_seconds: time after which the rest is left out, too.

        Raises:
            StoreClosedError: the store was closed meanwhile.
        """
        state, started = self._state, 0
        ends_at = time.monotonic() + timeout_seconds
        with state.lock:
            num_left = {pool: pool.top.num_slots - len(pool.top.pinned) for pool in state.pools}
            for key in keys:
                while not state.takes(Priority.BACKGROUND) and (left := ends_at - time.monotonic()) > 0:
                    state.lock.wait(left)
                if state.lock.is_closed or not state.takes(Priority.BACKGROUND):
                    break
                pool = state.pool_of[key.layer]
                is_gone = not state.catalog.has(key)  # its variant was removed meanwhile
                if is_gone or not num_left[pool] or pool.top.find(key) is not None or key in state.quarantined:
                    continue
                loading = pool.load(key, priority=Priority.BACKGROUND)
                if loading is not None:
                    pool.release(loading)
                    num_left[pool] -= 1
                    started += 1
        return started

    def pin(self, keys: Sequence[ExpertKey]) -> int:
        """Keep experts in the fastest tier; those that are not there are loaded, and stay from then on.

        Returns:
            The number of experts that were not pinned already.

        Raises:
            BudgetError: too few slots would be left; nothing is pinned then.
            ExpertLoadError: one is quarantined; nothing is pinned then.
            ValueError: the model has no such expert; nothing is pinned then.
        """
        state = self._state
        with state.lock:
            state.refuse_unknown(keys)
            state.refuse_quarantined(keys)
            self._budgets.refuse_more_pins(keys)
            num_new = 0
            for key in keys:
                pool = state.pool_of[key.layer]
                num_new += pool.top.pin(key)
                if pool.top.find(key) is None and state.next_device_slots is None:
                    pool.load_pin(key)
        return num_new

    def unpin(self, keys: Iterable[ExpertKey]) -> int:
        """Let experts be evicted again; return how many were pinned."""
        with self._state.lock:
            num_pinned = sum(self._state.pool_of[key.layer].top.unpin(key) for key in keys)
            self._state.lock.wake_waiters()
        return num_pinned

    def evict(self, keys: Iterable[ExpertKey]) -> int:
        """Drop experts that are neither in use nor pinned from all tiers; return how many were dropped."""
        return sum(obstacle is None for obstacle in self.try_evict(keys).values())

    def try_evict(self, keys: Iterable[ExpertKey]) -> dict[ExpertKey, EvictObstacle | None]:
        """Do what ``evict`` does; return for each expert why it stays, or None if it was dropped."""
        with self._state.lock:
            return {key: self._state.pool_of[key.layer].evict(key) for key in dict.fromkeys(keys)}

    def resize(self, *, host_bytes: int | None = None, device_bytes: int | None = None) -> None:
        """Change budgets while leases come and go.

        The host tier grows and shrinks slot by slot; slots in use are retired when their leases end. The device tier is
        emptied and allocated anew as soon as nothing in it is in use; leases and prefetches that begin meanwhile wait.

        Raises:
            BudgetError: a budget does not hold one slot of each layout and the pins, or can't be allocated.
        """
        budgets = self._budgets
        with self._state.lock:
            grows = (host_bytes or 0) > budgets["host"] or (device_bytes or 0) > budgets["device"]
            if host_bytes is not None:
                budgets.resize_host(host_bytes)
            if device_bytes is not None:
                budgets.resize_device(device_bytes)
        if grows:
            self.on_growth()

    @property
    def holds_all(self) -> bool:
        """True if the fastest tier has a slot for every expert."""
        with self._state.lock:
            num_places = self.catalog.num_places
            return all(pool.top.num_slots >= num_places[pool.layout] for pool in self._state.pools)

    def absent(self) -> list[ExpertKey]:
        """Return the experts that are not in the fastest tier, not loading and not quarantined.

        Raises:
            StoreClosedError: the store was closed.
        """
        state = self._state
        with state.lock:
            if state.lock.is_closed:
                raise StoreClosedError("the expert store was closed")
            return [
                key
                for pool in state.pools
                for key in pool.experts
                if pool.top.find(key) is None and key not in state.quarantined
            ]

    @property
    def slot_table(self) -> npt.NDArray[np.int32]:
        """The slot of each expert in the device's arena of its layout, ``(layers, experts)``, or -1."""
        return self._state.slot_table

    @property
    def quarantined(self) -> dict[ExpertKey, str]:
        """The experts whose bytes are damaged, and what is wrong with each."""
        with self._state.lock:
            return dict(self._state.quarantined)

    @property
    def pinned(self) -> frozenset[ExpertKey]:
        """The pinned experts, those included that are not loaded yet."""
        with self._state.lock:
            return frozenset[ExpertKey]().union(*(pool.top.pinned for pool in self._state.pools))

    def check_integrity(self) -> None:
        """Raise AssertionError if a slot is lost or used twice."""
        with self._state.lock:
            for pool in self._state.pools:
                pool.check_integrity()

    def close(self) -> None:
        """Stop reading; threads that wait for experts get StoreClosedError."""
        self._finalizer()
