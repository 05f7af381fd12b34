"""A model without the experts that a policy forbids: the same as a variant that removes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from expert_store import CheckpointError, ExpertStore
from server.model.checkpoint.expert_restriction import ExpertRestriction
from server.model.chunk_weights import ChunkWeights
from server.model.trunk.trunk import Trunk
from tests.checkpoints import make_checkpoint
from tests.server.model.experts.test_variants import assert_equal, assert_near, is_expert, open_trunk, run
from tests.server.model.variants import base_of, load, other, read, read_tensors, save_variant

FORBIDDEN = [0, 3]
FAMILIES = ["qwen3_moe", "mixtral", "olmoe", "gpt_oss", "granitemoe", "qwen3_next", "phimoe"]


def restriction(trunk: Trunk, experts: list[int], layers: list[int] | None = None) -> ExpertRestriction:
    removed = dict.fromkeys(trunk.catalog.layers if layers is None else layers, frozenset(experts))
    return ExpertRestriction(trunk.model, trunk.catalog, trunk.routers, removed)


@pytest.fixture(params=[False, True], ids=["torch", "native"])
def trunk(request: pytest.FixtureRequest, tmp_path: Path) -> Trunk:
    return open_trunk(make_checkpoint("qwen3_moe", tmp_path / "base"), is_native=request.param)


@pytest.fixture
def store(trunk: Trunk) -> Iterator[ExpertStore]:
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes * 2)
    yield store
    store.check_integrity()
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize("is_native", [False, True], ids=["torch", "native"])
@pytest.mark.parametrize("name", FAMILIES)
def test_forbidden_experts_are_never_run_and_the_rest_is_as_in_a_variant_without_them(
    name: str, is_native: bool, tmp_path: Path
) -> None:
    folder = make_checkpoint(name, tmp_path / "base")
    trunk = open_trunk(folder, is_native=is_native)
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    removed = save_variant(tmp_path / "fewer", {}, {"greenroom_removed_experts": json.dumps(FORBIDDEN)})
    wanted = run(trunk, store, [load(store, read(removed, base_of(folder, trunk)))] * 3)
    before = store.statistics().tokens.copy()
    found = run(trunk, store, [ChunkWeights(variant=restriction(trunk, FORBIDDEN).apply(None))] * 3)
    used = (store.statistics().tokens - before).sum(0)
    store.close()
    assert_equal(found, wanted)
    assert used[FORBIDDEN].sum() == 0
    assert used.sum() > 0


@pytest.mark.slow
def test_sequences_with_and_without_forbidden_experts_share_a_batch(trunk: Trunk, store: ExpertStore) -> None:
    fewer = ChunkWeights(variant=restriction(trunk, FORBIDDEN).apply(None))
    own, wanted = run(trunk, store, [None] * 3), run(trunk, store, [fewer] * 3)
    assert any(not torch.equal(one, another) for (_, one), (_, another) in zip(own, wanted, strict=True))
    assert_near(run(trunk, store, [fewer, None, fewer]), [wanted[0], own[1], wanted[2]])


@pytest.mark.slow
def test_experts_are_forbidden_in_a_variant_with_other_added_and_removed_ones(
    trunk: Trunk, store: ExpertStore, tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    base, tensors = base_of(folder, trunk), read_tensors(folder)
    changed = other(tensors, is_expert)
    changed |= {
        name.replace("experts.3.", "experts.8."): tensor
        for name, tensor in other(tensors, lambda name: ".experts.3." in name).items()
    }
    changed |= {
        name: torch.cat([tensor, torch.randn(1, tensor.shape[1]) * tensor.std()])
        for name, tensor in tensors.items()
        if name.endswith("mlp.gate.weight")
    }
    law, without = (
        load(
            store,
            read(
                save_variant(tmp_path / name, changed, {"greenroom_removed_experts": json.dumps(removed)}),
                base,
                name,
                name,
            ),
        )
        for name, removed in (("law", [2]), ("without", [2, 5, 6]))
    )
    restricted = restriction(trunk, [5, 6]).apply(law.variant)
    assert_equal(run(trunk, store, [ChunkWeights(variant=restricted)] * 3), run(trunk, store, [without] * 3))


@pytest.mark.slow
def test_only_the_named_layers_lack_experts(trunk: Trunk, store: ExpertStore) -> None:
    before = store.statistics().tokens.copy()
    run(trunk, store, [ChunkWeights(variant=restriction(trunk, FORBIDDEN, [1]).apply(None))] * 3)
    used = store.statistics().tokens - before
    rows = list(trunk.catalog.layers)
    assert used[rows.index(1)][FORBIDDEN].sum() == 0
    assert used[rows.index(0)][FORBIDDEN].sum() > 0


def test_there_is_one_object_for_each_variant_and_equal_experts_have_one_version(
    trunk: Trunk, store: ExpertStore, tmp_path: Path
) -> None:
    variant = save_variant(tmp_path / "law", {}, {"greenroom_removed_experts": "[2]"})
    law = load(store, read(variant, base_of(tmp_path / "base", trunk))).variant
    one, another = restriction(trunk, FORBIDDEN), restriction(trunk, FORBIDDEN)
    assert one.apply(None) is one.apply(None)
    assert one.apply(law) is one.apply(law)
    versions = {one.apply(None).version, one.apply(law).version, restriction(trunk, [0]).apply(None).version}
    assert len(versions) == 3
    assert another.apply(law).version == one.apply(law).version


def test_a_router_that_chooses_among_groups_can_lose_no_expert(tmp_path: Path) -> None:
    folder = make_checkpoint("deepseek_v3", tmp_path / "base")
    trunk = open_trunk(folder, is_native=False)
    layer = next(iter(trunk.routers))
    with pytest.raises(CheckpointError, match=f"layer {layer} can't have 7 instead of 8 experts: its router chooses"):
        restriction(trunk, [0], [layer])


def test_fewer_experts_than_a_token_chooses_are_refused(trunk: Trunk) -> None:
    with pytest.raises(CheckpointError, match="layer 0 keeps 1 experts, but a token chooses 2"):
        restriction(trunk, list(range(7)), [0])


def test_a_layer_whose_router_was_not_found_can_lose_no_expert(trunk: Trunk) -> None:
    with pytest.raises(CheckpointError, match="the router of layer 1 was not found"):
        ExpertRestriction(trunk.model, trunk.catalog, {}, {1: frozenset(FORBIDDEN)})
