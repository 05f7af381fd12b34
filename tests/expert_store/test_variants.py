"""Variants that come and go while a store is in use."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from expert_store import (
    BASE,
    BudgetError,
    ExpertCatalog,
    ExpertKey,
    ExpertLayout,
    ExpertLoadError,
    ExpertStore,
    LayerEntry,
    ParameterSpec,
    StoreClosedError,
)
from expert_store.errors import SourceGoneError
from expert_store.io.device_memory import EmulatedDevice
from expert_store.slot_budget import slots_per_layout
from tests.expert_store.gated_reads import GatedReads
from tests.expert_store.lease_rows import one_row_each
from tests.expert_store.records import LAYOUT, make_recipes, make_records, value_of
from tests.expert_store.waiting import TIMEOUT, wait_until_idle

EXPERTS = 8


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ExpertStore]:
    store = ExpertStore(make_records(tmp_path), 16 * LAYOUT.slot_bytes)
    yield store
    store.close()
    store.check_integrity()


def values(store: ExpertStore, *keys: ExpertKey) -> dict[ExpertKey, int]:
    with store.lease(dict.fromkeys(keys, 1)) as lease:
        return {key: int(weights["weight"][0]) for key, weights in lease}


def num_handles() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_both_sets_of_weights_are_leased_together(store: ExpertStore, tmp_path: Path) -> None:
    store.add_variant("law", make_recipes(tmp_path / "law", (0, 3)))
    own, law = ExpertKey(0, 3), ExpertKey(0, 3, "law")
    assert values(store, own, law) == {own: value_of(own), law: value_of(law)}


def test_an_expert_beyond_the_models_own_is_read(store: ExpertStore, tmp_path: Path) -> None:
    record = make_recipes(tmp_path / "law", (0, 3))[0, 3]
    folder = tmp_path / "more"
    folder.mkdir()
    more = make_records(folder, num_experts=EXPERTS + 1, variants=["made"]).variants["made"]
    store.add_variant("law", {(0, 3): record, (0, EXPERTS): more[0, EXPERTS]})
    key = ExpertKey(0, EXPERTS, "law")
    assert values(store, key) == {key: value_of(key)}


def test_a_variant_that_comes_while_another_goes_has_its_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(ExpertStore(make_records(tmp_path), 20 * LAYOUT.slot_bytes)) as store:
        store.add_variant("law", make_recipes(tmp_path / "law", (0, 1)))
        coming = threading.Thread(
            target=store.add_variant, args=("code", make_recipes(tmp_path / "code", (0, 1), (0, 2)))
        )

        def count_slots(catalog: ExpertCatalog, budget_bytes: int) -> dict[ExpertLayout, int]:
            """Count the slots of the variant that goes, then let the other come, unless it has to wait."""
            slots = slots_per_layout(catalog, budget_bytes)
            if coming.ident is None:
                coming.start()
                coming.join(0.5)
            return slots

        monkeypatch.setattr("expert_store.store_budgets.slots_per_layout", count_slots)
        store.remove_variant("law")
        coming.join()
        assert store.tiers()["host"].num_slots == 2 * EXPERTS + 2


def test_the_budget_holds_more_slots_where_there_are_more_experts(tmp_path: Path) -> None:
    with closing(ExpertStore(make_records(tmp_path), 20 * LAYOUT.slot_bytes)) as store:
        assert store.tiers()["host"].num_slots == 2 * EXPERTS
        store.add_variant("law", make_recipes(tmp_path / "law", (0, 1), (0, 2), (1, 1)))
        assert store.tiers()["host"].num_slots == 2 * EXPERTS + 3
        store.remove_variant("law")
        assert store.tiers()["host"].num_slots == 2 * EXPERTS


def test_a_device_tier_takes_its_whole_budget_when_variants_come(tmp_path: Path) -> None:
    slot, own = LAYOUT.slot_bytes, 2 * EXPERTS
    with closing(ExpertStore(make_records(tmp_path), 4 * slot, device_bytes=(own + 5) * slot)) as store:
        assert store.tiers()["device"].num_slots == own
        for name, places in (("law", [(0, 1), (0, 2)]), ("code", [(1, 3)])):
            store.add_variant(name, make_recipes(tmp_path / name, *places))
            assert store.tiers()["device"].num_slots == own + 5
        keys = [ExpertKey(0, 1), ExpertKey(0, 1, "law"), ExpertKey(0, 2, "law")]
        assert values(store, *keys) == {key: value_of(key) for key in keys}
        wait_until_idle(store)
        store.check_integrity()


def test_a_device_tier_grows_when_the_leases_of_other_threads_have_ended(tmp_path: Path) -> None:
    slot, key = LAYOUT.slot_bytes, ExpertKey(0, 1)
    with closing(ExpertStore(make_records(tmp_path), 4 * slot, device_bytes=100 * slot)) as store:
        coming = threading.Thread(target=store.add_variant, args=("law", make_recipes(tmp_path / "law", (0, 1))))
        with store.lease({key: 1}) as lease:
            ((_, weights),) = list(lease)
            coming.start()
            coming.join(0.2)
            assert coming.is_alive()
            assert int(weights["weight"][0]) == value_of(key)
        coming.join()
        assert store.tiers()["device"].num_slots == 100


def test_a_device_tier_that_can_not_grow_serves_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slot, own = LAYOUT.slot_bytes, 2 * EXPERTS
    with closing(ExpertStore(make_records(tmp_path), 4 * slot, device_bytes=(own + 5) * slot)) as store:
        allocate = EmulatedDevice.allocate

        def allocate_little(device: EmulatedDevice, nbytes: int) -> torch.Tensor:
            if nbytes > own * slot:
                raise BudgetError("others took it")
            return allocate(device, nbytes)

        monkeypatch.setattr(EmulatedDevice, "allocate", allocate_little)
        store.add_variant("law", make_recipes(tmp_path / "law", (0, 1)))
        assert store.tiers()["device"].num_slots == own
        key = ExpertKey(0, 1, "law")
        assert values(store, key) == {key: value_of(key)}


def test_what_is_removed_leaves_no_resident_pin_or_handle(store: ExpertStore, tmp_path: Path) -> None:
    before, made = num_handles(), make_recipes(tmp_path / "law", (0, 1), (1, 2))
    for _ in range(50):
        store.add_variant("law", made)
        store.pin([ExpertKey(0, 1, "law")])
        values(store, ExpertKey(1, 2, "law"))
        wait_until_idle(store)
        store.remove_variant("law")
        assert all(key.variant == BASE for key in store.residents())
        assert not store.pinned
    assert num_handles() == before


def test_an_expert_that_loads_while_its_variant_is_removed_is_dropped(
    store: ExpertStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = GatedReads(monkeypatch)
    store.add_variant("law", make_recipes(tmp_path / "law", (0, 1)))
    store.pin([ExpertKey(0, 1, "law")])
    store.remove_variant("law")
    reads.is_open.set()
    wait_until_idle(store)
    assert not store.residents()


def test_a_variant_that_goes_meanwhile_is_not_preloaded(
    store: ExpertStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add_variant("law", make_recipes(tmp_path / "law", (0, 1)))
    store.resize(host_bytes=store.catalog.all_bytes)
    own = [ExpertKey(layer, expert) for layer in range(2) for expert in range(EXPERTS)]  # more than there are readers
    reads = GatedReads(monkeypatch)
    with ThreadPoolExecutor(1) as thread:
        preloading = thread.submit(store.preload, [*own, ExpertKey(0, 1, "law")], TIMEOUT)
        reads.wait_until_started()
        store.remove_variant("law")
        reads.is_open.set()
        assert preloading.result() == len(own)


def test_a_name_is_given_once(store: ExpertStore, tmp_path: Path) -> None:
    made = make_recipes(tmp_path / "law", (0, 1))
    store.add_variant("law", made)
    before = num_handles()
    for name in ("law", BASE):
        with pytest.raises(ValueError, match="there is a variant"):
            store.add_variant(name, made)
    assert num_handles() == before


def test_a_running_lease_keeps_its_bytes_while_variants_change(store: ExpertStore, tmp_path: Path) -> None:
    store.add_variant("one", make_recipes(tmp_path / "one", (0, 1)))
    key = ExpertKey(0, 1, "one")
    with store.lease({key: 1}) as lease:
        (_, weights), *_ = list(lease)
        thread = threading.Thread(
            target=store.add_variant, args=("two", make_recipes(tmp_path / "two", (0, 1), (1, 1)))
        )
        thread.start()
        thread.join()
        store.remove_variant("two")
        assert int(weights["weight"][0]) == value_of(key)


def test_rows_of_a_variant_are_counted_for_it_and_for_the_place(store: ExpertStore, tmp_path: Path) -> None:
    store.add_variant("law", make_recipes(tmp_path / "law", (0, 3)))
    with store.lease({ExpertKey(0, 3, "law"): 5, ExpertKey(0, 3): 2}) as lease:
        list(lease)
    statistics = store.statistics()
    assert statistics.variant_tokens == {"law": 5}
    assert statistics.tokens[0, 3] == 7


def test_a_layer_may_have_nothing_but_variants(tmp_path: Path) -> None:
    catalog = ExpertCatalog({0: LayerEntry(LAYOUT, ())})
    with closing(ExpertStore(catalog, 4 * LAYOUT.slot_bytes)) as store:
        for name in ("one", "two"):
            store.add_variant(name, make_recipes(tmp_path / name, *((0, expert) for expert in range(4))))
        for name in ("one", "two", "one"):
            keys = [ExpertKey(0, expert, name) for expert in range(4)]
            with store.lease(dict.fromkeys(keys, 1)) as lease:
                batches = list(lease.batches())
                assert not batches[-1].gives_back
                assert sum(len(ready.keys) for ready in batches) == len(keys)
        assert store.tiers()["host"].num_slots == 4


def test_a_file_that_is_gone_is_told_and_changes_nothing(store: ExpertStore, tmp_path: Path) -> None:
    made = make_recipes(tmp_path / "law", (0, 1))
    for path in (tmp_path / "law").iterdir():
        path.unlink()
    with pytest.raises(SourceGoneError):
        store.add_variant("law", made)
    assert not store.catalog.variants
    assert np.all([value == value_of(key) for key, value in values(store, *one_row_each(0, range(3))).items()])


def test_leases_keep_what_they_have_of_a_removed_variant_and_its_name_is_free(
    store: ExpertStore, tmp_path: Path
) -> None:
    key = ExpertKey(0, 1, "law")
    store.add_variant("law", make_recipes(tmp_path / "old", (0, 1)))
    with store.lease({key: 1}) as lease:
        ((_, weights),) = list(lease)
        store.remove_variant("law")
        store.add_variant("law", make_recipes(tmp_path / "new", (0, 1), shift=10_000))
        assert values(store, key) == {key: value_of(key) + 10_000}
        assert int(weights["weight"][0]) == value_of(key)
    store.check_integrity()
    assert store.tiers()["host"].num_resident == 1


@pytest.mark.parametrize("device_slots", [0, 4])
def test_a_variant_of_the_same_name_does_not_get_the_bytes_that_were_being_read(
    tmp_path: Path, device_slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, slot = ExpertKey(0, 1, "law"), LAYOUT.slot_bytes
    with closing(ExpertStore(make_records(tmp_path), 16 * slot, device_bytes=device_slots * slot)) as store:
        reads = GatedReads(monkeypatch)
        store.add_variant("law", make_recipes(tmp_path / "old", (0, 1)))
        store.pin([key])
        reads.wait_until_started()
        store.remove_variant("law")
        store.add_variant("law", make_recipes(tmp_path / "new", (0, 1), shift=10_000))
        reads.is_open.set()
        assert values(store, key) == {key: value_of(key) + 10_000}
        wait_until_idle(store)
        store.check_integrity()


def test_a_lease_in_waves_is_told_that_its_variant_was_removed(store: ExpertStore, tmp_path: Path) -> None:
    store.resize(host_bytes=LAYOUT.slot_bytes)
    store.add_variant("law", make_recipes(tmp_path / "law", *((0, expert) for expert in range(4))))
    keys = [ExpertKey(0, expert, "law") for expert in range(4)]

    def use_and_remove() -> None:
        with store.lease(dict.fromkeys(keys, 1)) as lease:
            next(iter(lease))
            store.remove_variant("law")
            list(lease)

    with pytest.raises(ExpertLoadError, match=r"of layer 0 \(law\): the variant was removed"):
        use_and_remove()
    store.check_integrity()
    own = ExpertKey(0, 1)
    assert values(store, own) == {own: value_of(own)}


def test_damaged_bytes_of_a_removed_variant_do_not_quarantine_the_next(
    store: ExpertStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = ExpertKey(0, 1, "law")
    store.add_variant("law", make_recipes(tmp_path / "old", (0, 1)))
    with (tmp_path / "old" / "layer0.pack").open("r+b") as file:
        file.seek((EXPERTS + 1) * LAYOUT.slot_bytes)
        file.write(b"damage")
    reads = GatedReads(monkeypatch)
    store.pin([key])
    reads.wait_until_started()
    store.remove_variant("law")
    reads.is_open.set()
    wait_until_idle(store)
    store.add_variant("law", make_recipes(tmp_path / "new", (0, 1)))
    assert not store.quarantined
    assert values(store, key) == {key: value_of(key)}


def test_pins_of_another_layout_that_would_lose_their_slots_refuse_a_variant(tmp_path: Path) -> None:
    """Nothing is added then, and no file stays open."""
    with closing(two_layouts(tmp_path)) as store:
        store.pin([ExpertKey(1, expert) for expert in range(3)])
        before = num_handles()
        with pytest.raises(BudgetError, match="3 pinned experts leave fewer than 1 of 3 slots"):
            store.add_variant("law", make_recipes(tmp_path / "law", *((0, expert) for expert in range(EXPERTS))))
        assert not store.catalog.variants
        assert num_handles() == before


def test_pins_that_fit_only_beside_a_variant_stay_when_it_goes(tmp_path: Path) -> None:
    with closing(two_layouts(tmp_path)) as store:
        store.add_variant("law", make_recipes(tmp_path / "law", *((0, expert) for expert in range(EXPERTS))))
        store.pin([ExpertKey(0, expert) for expert in range(5)])
        store.remove_variant("law")
        assert len(store.pinned) == 5
        assert store.tiers()["host"].slot_bytes <= store.tiers()["host"].budget_bytes
        keys = [ExpertKey(0, expert) for expert in range(EXPERTS)]
        assert values(store, *keys) == {key: value_of(key) for key in keys}


def two_layouts(folder: Path) -> ExpertStore:
    """Return a store of 10 slots for 16 experts, whose layers have layouts of the same size."""
    layers = make_records(folder).layers
    other = ExpertLayout((ParameterSpec("weight", torch.int32, (32,)),))
    catalog = ExpertCatalog({0: layers[0], 1: LayerEntry(other, layers[1].experts)})
    return ExpertStore(catalog, 10 * LAYOUT.slot_bytes)


@pytest.mark.parametrize("name", ["other", BASE])
def test_what_is_no_variant_is_not_removed(store: ExpertStore, name: str) -> None:
    with pytest.raises(ValueError, match=f"there is no variant '{name}'"):
        store.remove_variant(name)
    own = ExpertKey(0, 1)
    assert values(store, own) == {own: value_of(own)}


def test_a_closed_store_takes_no_variant(store: ExpertStore, tmp_path: Path) -> None:
    made = make_recipes(tmp_path / "law", (0, 1))
    store.close()
    before = num_handles()
    with pytest.raises(StoreClosedError):
        store.add_variant("law", made)
    assert num_handles() == before
