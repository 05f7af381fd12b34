"""Random use from many threads: leases, failures, evictions, pins, prefetches, resizes, variants that come and go.

The invariants hold after each step.
"""

from __future__ import annotations

import ctypes
import functools
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from expert_store import BASE, BudgetError, ExpertKey, ExpertLoadError, ExpertStore, Lease, Weights
from expert_store.policies import POLICIES
from expert_store.sources.base import Bytes, Piece
from expert_store.sources.file import DirectFile
from tests.expert_store.records import LAYOUT, make_records, value_of
from tests.expert_store.waiting import wait_until_idle

pytestmark = pytest.mark.slow

LAYERS, EXPERTS, THREADS, TIMEOUT = 3, 6, 6, 60
VARIANT = "other"
NAMES, MORE, SHIFTS = ("red", "blue"), 2, (10_000, 20_000)  # of variants that come and go, beyond the model's experts
SLOT = LAYOUT.slot_bytes

experts = st.sets(st.integers(0, EXPERTS - 1), min_size=1)
variants = st.sampled_from([BASE, BASE, BASE, VARIANT])
keys = st.builds(ExpertKey, st.integers(0, LAYERS - 1), st.integers(0, EXPERTS - 1), variants)


def keys_of(layer: int) -> st.SearchStrategy[ExpertKey]:
    return st.builds(ExpertKey, st.just(layer), st.integers(0, EXPERTS - 1), variants)


of_one_layer = st.integers(0, LAYERS - 1).flatmap(
    lambda layer: st.sets(keys.map(lambda key: key._replace(layer=layer)), min_size=1)
)
requests = st.lists(of_one_layer, min_size=1, max_size=THREADS)
places = st.sets(st.tuples(st.integers(0, LAYERS - 1), st.integers(0, EXPERTS + MORE - 1)), min_size=1, max_size=12)
slots = st.integers(3, LAYERS * EXPERTS + 2)  # pins leave two, and one of these may be leased


class FaultyFile(DirectFile):
    """A file some of whose experts can't be read."""

    broken: ClassVar[set[ExpertKey]] = set()

    def read(self, pieces: Sequence[Piece], scratch: Bytes | None = None) -> None:
        layer = int(self._path.stem.removeprefix("layer"))
        if any(ExpertKey(layer, piece.offset // SLOT) in self.broken for piece in pieces):
            raise OSError(5, "Input/output error")
        super().read(pieces, scratch)


class StoreMachine(RuleBasedStateMachine):
    """One store; each rule runs on several threads at once and has ended before the next begins."""

    device_slots = 0

    @initialize(host_slots=slots, policy=st.sampled_from(POLICIES))
    def open(self, host_slots: int, policy: str) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("expert_store.sources.file.DirectFile", FaultyFile)
        FaultyFile.broken = set()
        self.threads = ThreadPoolExecutor(THREADS + 1)
        self.store = ExpertStore(
            make_records(self.folder, LAYERS, EXPERTS, [VARIANT]),
            host_slots * SLOT,
            device_bytes=self.device_slots * SLOT,
            num_readers=2,
            policy=policy,
            least_unpinned=2,
        )
        self.leases: list[tuple[Lease, Weights, int]] = []
        self.sources = []
        for shift in SHIFTS:
            folder = self.folder / str(shift)
            folder.mkdir()
            self.sources.append(make_records(folder, LAYERS, EXPERTS + MORE, ["made"], shift).variants["made"])
        self.made: dict[str, dict[ExpertKey, int]] = {}  # the values of each variant that comes and goes

    def use(self, chosen: set[ExpertKey]) -> None:
        try:
            with self.store.lease(dict.fromkeys(chosen, 1)) as lease:
                found = {key: int(weights["weight"][0]) for key, weights in lease}
            assert found == {key: value_of(key) for key in chosen}
        except ExpertLoadError as error:
            assert error.key in FaultyFile.broken  # noqa: PT017  it may be raised or not

    def together(self, batch: list[set[ExpertKey]], *others: Any) -> None:
        jobs = [self.threads.submit(self.use, chosen) for chosen in batch]
        jobs += [self.threads.submit(other) for other in others]
        for job in jobs:
            job.result(timeout=TIMEOUT)

    @rule(batch=requests)
    def lease(self, batch: list[set[ExpertKey]]) -> None:
        self.together(batch)

    @rule(batch=requests, broken=st.sets(keys, max_size=4))
    def lease_while_reads_fail(self, batch: list[set[ExpertKey]], broken: set[ExpertKey]) -> None:
        FaultyFile.broken = broken
        self.together(batch)
        wait_until_idle(self.store)
        FaultyFile.broken = set()

    @rule(batch=requests, host_slots=slots)
    def lease_while_resizing(self, batch: list[set[ExpertKey]], host_slots: int) -> None:
        self.together(batch, lambda: self.resize(host_slots))

    def resize(self, host_slots: int) -> None:
        try:
            self.store.resize(host_bytes=host_slots * SLOT)
        except BudgetError as error:
            assert "pinned" in str(error)  # noqa: PT017

    @rule(batch=requests, chosen=st.lists(keys, max_size=5))
    def lease_while_evicting(self, batch: list[set[ExpertKey]], chosen: list[ExpertKey]) -> None:
        self.together(batch, lambda: self.store.evict(chosen))

    @rule(batch=requests, chosen=of_one_layer)
    def lease_while_prefetching(self, batch: list[set[ExpertKey]], chosen: set[ExpertKey]) -> None:
        self.together(batch, lambda: self.store.prefetch(list(chosen)))

    @rule(batch=requests, chosen=st.lists(keys, max_size=3))
    def lease_while_pinning(self, batch: list[set[ExpertKey]], chosen: list[ExpertKey]) -> None:
        self.together(batch, lambda: self.pin(chosen))

    def pin(self, chosen: list[ExpertKey]) -> None:
        try:
            self.store.pin(chosen)
        except BudgetError as error:
            assert "pinned" in str(error)  # noqa: PT017

    @rule(chosen=st.lists(keys, max_size=6))
    def unpin(self, chosen: list[ExpertKey]) -> None:
        self.store.unpin(chosen)

    @rule(batch=requests)
    def leave_a_lease_at_once(self, batch: list[set[ExpertKey]]) -> None:
        def enter_and_leave() -> None:
            with self.store.lease(dict.fromkeys(batch[0], 1)):
                pass

        self.together(batch, enter_and_leave)

    @precondition(lambda self: not self.leases)
    @rule(chosen=st.lists(keys, max_size=5), host_slots=slots, rows=experts)
    def hold_all(self, chosen: list[ExpertKey], host_slots: int, rows: set[int]) -> None:
        """Hold all experts for a step while other threads try to evict them."""
        self.resize(LAYERS * EXPERTS)
        for layer in range(LAYERS):
            self.use({ExpertKey(layer, expert) for expert in range(EXPERTS)})
        hold = self.store.hold_residents(needs_all=True)
        if hold is None:  # pinned variants have some of the slots, or there is a device tier
            return
        with hold:
            base = [{ExpertKey(layer, expert) for expert in rows} for layer in range(LAYERS)]
            self.together(base, lambda: self.resize(host_slots), lambda: self.store.evict(chosen))
            for layer, addresses in enumerate(hold.addresses):
                found = [np.frombuffer(ctypes.string_at(int(address), 4), np.int32)[0] for address in addresses]
                assert found == [value_of(ExpertKey(layer, expert)) for expert in range(EXPERTS)]
            hold.close([*range(LAYERS)], np.tile(np.isin(np.arange(EXPERTS), list(rows)), (LAYERS, 1)).astype(np.int64))

    @precondition(lambda self: not self.leases)
    @rule(layer=st.integers(0, LAYERS - 1), expert=st.integers(0, EXPERTS - 1))
    def keep_a_lease(self, layer: int, expert: int) -> None:
        """Lease one expert over several rules."""
        self.keep(ExpertKey(layer, expert), value_of(ExpertKey(layer, expert)))

    @precondition(lambda self: self.made and not self.leases)
    @rule(data=st.data())
    def keep_a_lease_of_a_variant(self, data: st.DataObject) -> None:
        values = self.draw_variant(data)
        key = data.draw(st.sampled_from(sorted(values)))
        self.keep(key, values[key])

    def keep(self, key: ExpertKey, value: int) -> None:
        lease = self.store.lease({key: 1})
        lease.__enter__()
        ((_, weights),) = list(lease)
        self.leases.append((lease, weights, value))

    @precondition(lambda self: self.leases)
    @rule()
    def end_lease(self) -> None:
        lease, weights, value = self.leases.pop()
        assert int(weights["weight"][0]) == value
        lease.__exit__(None, None, None)

    @rule(name=st.sampled_from(NAMES), source=st.integers(0, len(SHIFTS) - 1), chosen=places, batch=requests)
    def lease_while_adding_a_variant(
        self, name: str, source: int, chosen: set[tuple[int, int]], batch: list[set[ExpertKey]]
    ) -> None:
        if name not in self.made:
            self.together(batch, lambda: self.add(name, source, chosen))

    def add(self, name: str, source: int, chosen: set[tuple[int, int]]) -> None:
        try:
            self.store.add_variant(name, {place: self.sources[source][place] for place in chosen})
        except BudgetError as error:
            assert "pinned" in str(error)  # noqa: PT017
            return
        keys = [ExpertKey(*place, name) for place in chosen]
        self.made[name] = {key: value_of(key) + SHIFTS[source] for key in keys}

    def draw_variant(self, data: st.DataObject) -> dict[ExpertKey, int]:
        return self.made[data.draw(st.sampled_from(sorted(self.made)))]

    def use_variant(self, values: dict[ExpertKey, int], layer: int) -> None:
        """Lease a variant's experts of a layer beside some of the model's own."""
        own = [ExpertKey(layer, expert) for expert in range(2)]
        wanted = {key: value for key, value in values.items() if key.layer == layer} | {
            key: value_of(key) for key in own
        }
        with self.store.lease(dict.fromkeys(wanted, 1)) as lease:
            assert {key: int(weights["weight"][0]) for key, weights in lease} == wanted

    @precondition(lambda self: self.made)
    @rule(data=st.data(), batch=requests, host_slots=slots)
    def lease_variants_while_resizing(self, data: st.DataObject, batch: list[set[ExpertKey]], host_slots: int) -> None:
        values = self.draw_variant(data)
        uses = [functools.partial(self.use_variant, values, key.layer) for key in list(values)[:3]]
        self.together(batch[:3], *uses, lambda: self.resize(host_slots))

    @precondition(lambda self: self.made)
    @rule(data=st.data())
    def pin_a_variant(self, data: st.DataObject) -> None:
        self.pin(sorted(self.draw_variant(data))[:2])

    @precondition(lambda self: self.made)
    @rule(data=st.data(), batch=requests)
    def lease_while_removing_a_variant(self, data: st.DataObject, batch: list[set[ExpertKey]]) -> None:
        name = data.draw(st.sampled_from(sorted(self.made)))
        values = self.made.pop(name)

        def use_or_miss(layer: int) -> None:
            try:
                self.use_variant(values, layer)
            except (ExpertLoadError, ValueError) as error:
                assert name in str(error)  # noqa: PT017

        uses = [functools.partial(use_or_miss, key.layer) for key in list(values)[:3]]
        self.together(batch[:2], *uses, lambda: self.store.remove_variant(name))
        assert all(key.variant != name for key in [*self.store.residents(), *self.store.pinned])

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "store"):
            return
        wait_until_idle(self.store)
        self.store.check_integrity()
        for tier in self.store.tiers().values():
            assert tier.num_resident <= tier.num_slots
            if not self.leases:
                assert tier.slot_bytes <= tier.budget_bytes

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            self.patch.undo()
        if hasattr(self, "store"):
            while self.leases:
                self.end_lease()
            self.store.hit_ratios()
            self.store.close()
            self.store.check_integrity()
            self.threads.shutdown()
            shutil.rmtree(self.folder)


class DeviceMachine(StoreMachine):
    """The same with a device tier that is rebuilt now and then."""

    device_slots = 4

    @precondition(lambda self: not self.leases)
    @rule(batch=requests, device_slots=st.integers(3, 9))
    def lease_while_rebuilding_the_device_tier(self, batch: list[set[ExpertKey]], device_slots: int) -> None:
        def rebuild() -> None:
            try:
                self.store.resize(device_bytes=device_slots * SLOT)
            except BudgetError as error:
                assert "pinned" in str(error)  # noqa: PT017

        self.together(batch, rebuild)


STEPS = settings(max_examples=settings().max_examples // 2, stateful_step_count=25)  # `make fuzz` runs more
TestHost = StoreMachine.TestCase
TestHost.settings = STEPS
TestDevice = DeviceMachine.TestCase
TestDevice.settings = STEPS
