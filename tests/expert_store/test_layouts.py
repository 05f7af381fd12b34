"""A model whose layers hold experts of different shapes: slots of each layout in an allocation of their own."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from expert_store import (
    BudgetError,
    ExpertCatalog,
    ExpertKey,
    ExpertLayout,
    ExpertStore,
    LayerEntry,
    ParameterRecipe,
    ParameterSpec,
    find_shards,
    read_index,
)
from tests.expert_store.lease_rows import one_row_each

WIDTHS = {0: 16, 1: 3000, 2: 16, 5: 700}  # by layer; two layers share a layout
NUM_EXPERTS = {0: 6, 1: 4, 2: 6, 5: 8}


@pytest.fixture
def catalog(tmp_path: Path) -> ExpertCatalog:
    tensors = {
        f"{layer}.{expert}": torch.full((width,), layer * 100.0 + expert)
        for layer, width in WIDTHS.items()
        for expert in range(NUM_EXPERTS[layer])
    }
    save_file(tensors, tmp_path / "model.safetensors")
    index = read_index(find_shards(tmp_path))
    return ExpertCatalog(
        {
            layer: LayerEntry(
                ExpertLayout((ParameterSpec("weight", torch.float32, (width,)),)),
                tuple(
                    {"weight": ParameterRecipe((index[f"{layer}.{expert}"],))} for expert in range(NUM_EXPERTS[layer])
                ),
            )
            for layer, width in WIDTHS.items()
        }
    )


def use_all(store: ExpertStore) -> None:
    for layer, width in WIDTHS.items():
        experts = range(NUM_EXPERTS[layer])
        with store.lease(one_row_each(layer, experts)) as lease:
            for key, weights in lease:
                assert torch.equal(weights["weight"], torch.full((width,), layer * 100.0 + key.expert))


@pytest.mark.parametrize("device_share", [0, 0.4])
@pytest.mark.parametrize("host_share", [0.3, 0.6, 1])
def test_every_layout_gets_its_part_of_the_budget(
    catalog: ExpertCatalog, host_share: float, device_share: float
) -> None:
    host_bytes = int(host_share * catalog.total_bytes)
    store = ExpertStore(catalog, host_bytes, device_bytes=int(device_share * catalog.total_bytes))
    for _ in range(2):
        use_all(store)
    assert store.tiers()["host"].slot_bytes <= host_bytes
    assert len({key.layer for key in store.residents()}) == len(WIDTHS)
    store.close()
    store.check_integrity()


def test_every_layout_follows_a_change_of_the_budget(catalog: ExpertCatalog) -> None:
    store = ExpertStore(catalog, catalog.total_bytes)
    use_all(store)
    for share in (0.3, 0.8):
        store.resize(host_bytes=int(share * catalog.total_bytes))
        use_all(store)
        assert store.tiers()["host"].slot_bytes <= share * catalog.total_bytes
        store.check_integrity()
    store.close()


def test_pins_of_one_layout_take_no_slots_of_another(catalog: ExpertCatalog) -> None:
    store = ExpertStore(catalog, catalog.total_bytes // 2)
    store.pin([ExpertKey(1, 3)])
    with pytest.raises(BudgetError, match="2 pinned experts leave fewer than 1 of 2 slots"):
        store.pin([ExpertKey(1, 2)])
    store.pin([ExpertKey(5, 2), ExpertKey(0, 1)])
    use_all(store)
    assert {ExpertKey(1, 3), ExpertKey(5, 2), ExpertKey(0, 1)} <= store.residents().keys()
    store.close()


def test_a_budget_that_leaves_a_layout_without_a_slot_is_refused(catalog: ExpertCatalog) -> None:
    with pytest.raises(BudgetError, match=r"hold no expert of every layer; give at least \d+"):
        ExpertStore(catalog, catalog.total_bytes // 8)


def test_a_device_tier_does_not_grow_where_a_layout_would_lose_its_last_slot(catalog: ExpertCatalog) -> None:
    wide = catalog.layers[1].experts[0]
    budget = 2 * catalog.total_bytes
    with closing(ExpertStore(catalog, 1 << 30, device_bytes=budget)) as store:
        before = store.tiers()["device"].num_slots
        store.add_variant("many", {(1, number): wide for number in range(2000)})
        assert store.tiers()["device"].num_slots == before
        use_all(store)
