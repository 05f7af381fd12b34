"""Sequences with expert variants have the logits of a checkpoint with these weights, whatever is in their batch."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from expert_store import ExpertStore, least_bytes
from server.kernels.compute_pool import ComputePool
from server.kernels.native.library import Kernels
from server.model.chunk_weights import ChunkWeights, WeightedAdapter
from server.model.experts.cost_attribution import RowOwners
from server.model.experts.next_layer_gate import GateInput
from server.model.experts.step_variants import PlaceTables, StepVariants
from server.model.lora_adapter import LoraAdapter, LoraMatrix
from server.model.step import SequenceChunk
from server.model.trunk.trunk import Trunk
from server.model.trunk_loader import load_trunk
from tests.checkpoints import make_checkpoint
from tests.server.model.checkpoint.test_packing import pack
from tests.server.model.test_parity import PROMPTS, generate
from tests.server.model.variants import base_of, load, other, read, read_tensors, save_changed, save_variant

STEPS = 4
TOLERANCE = 1e-4  # of the range of logits
BLOCK = 16  # of the native attention's cache
Result = list[tuple[list[int], torch.Tensor]]

# Families whose layers run natively, and others; the first layer's prefix, and the names of some experts and routers.
FAMILIES = ["qwen3_moe", "mixtral", "olmoe", "gpt_oss", "deepseek_v3", "granitemoe", "qwen3_next", "phimoe"]
SOME_EXPERTS = re.compile(
    r"layers\.[12]\..*experts\.[135]\.|layers\.[12]\..*(experts\.[a-z]|input_linear|output_linear)"
)


def is_expert(name: str) -> bool:
    return SOME_EXPERTS.search(name) is not None and not re.search("shared|norm", name)


def open_trunk(folder: Path, *, is_native: bool) -> Trunk:
    trunk = load_trunk(folder, torch.float32, pool=ComputePool(1, Kernels(1, None) if is_native else None))
    assert isinstance(trunk, Trunk)
    return trunk


def run(trunk: Trunk, store: ExpertStore, weights: list[ChunkWeights | None]) -> Result:
    return generate(trunk, store, chunk=5, steps=STEPS, block_size=BLOCK, weights=weights)


def assert_near(found: Result, wanted: Result) -> None:
    for (tokens, logits), (wanted_tokens, wanted_logits) in zip(found, wanted, strict=True):
        span = float(wanted_logits.max() - wanted_logits.min())
        assert float((logits - wanted_logits).abs().max()) < TOLERANCE * span
        assert tokens == wanted_tokens


def assert_equal(found: Result, wanted: Result) -> None:
    assert all(torch.equal(one, another) for (_, one), (_, another) in zip(found, wanted, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("is_native", [False, True], ids=["torch", "native"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_variant_has_the_logits_of_a_checkpoint_with_its_weights(name: str, is_native: bool, tmp_path: Path) -> None:
    folder = make_checkpoint(name, tmp_path / "base")
    changed = other(read_tensors(folder), is_expert)
    assert changed
    trunk = open_trunk(folder, is_native=is_native)
    files = read(save_variant(tmp_path / "law", changed), base_of(folder, trunk))
    reference = open_trunk(save_changed(tmp_path / "changed", folder, changed), is_native=is_native)
    stores = [ExpertStore(each.catalog, each.catalog.total_bytes * 2) for each in (trunk, reference)]
    law = load(stores[0], files)
    own = run(trunk, stores[0], [None] * 3)
    wanted = run(reference, stores[1], [None] * 3)
    assert any(not torch.equal(one, another) for (_, one), (_, another) in zip(own, wanted, strict=True))
    found = run(trunk, stores[0], [law, None, law])
    assert_near(found, [wanted[0], own[1], wanted[2]])
    if is_native and trunk.is_invariant:
        assert_equal(found, [wanted[0], own[1], wanted[2]])
    for store in stores:
        store.check_integrity()
        store.close()


@pytest.mark.slow
@pytest.mark.parametrize("share", ["least", "half", "all"])
@pytest.mark.parametrize("is_native", [False, True], ids=["torch", "native"])
def test_several_variants_in_one_batch_change_no_bit_of_each_other(is_native: bool, share: str, tmp_path: Path) -> None:
    folder = make_checkpoint("qwen3_moe", tmp_path / "base")
    trunk = open_trunk(folder, is_native=is_native)
    catalog, tensors = trunk.catalog, read_tensors(folder)
    host_bytes = {"least": least_bytes(catalog, 2), "half": catalog.total_bytes // 2, "all": 3 * catalog.total_bytes}
    store = ExpertStore(catalog, host_bytes[share])
    base = base_of(folder, trunk)
    weights: list[ChunkWeights | None] = [
        load(store, read(save_variant(tmp_path / name, other(tensors, is_expert, seed)), base, name, name))
        for seed, name in enumerate(("law", "code"))
    ]
    weights.append(None)
    together = run(trunk, store, weights)
    for index, own in enumerate(weights):
        alone = generate(trunk, store, chunk=5, steps=STEPS, block_size=BLOCK, prompts=[PROMPTS[index]], weights=[own])
        (assert_equal if trunk.is_invariant else assert_near)([together[index]], alone)
    store.check_integrity()
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize("is_native", [False, True], ids=["torch", "native"])
@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral", "gpt_oss", "granitemoe"])
def test_a_variant_with_a_router_of_its_own(name: str, is_native: bool, tmp_path: Path) -> None:
    folder = make_checkpoint(name, tmp_path / "base")
    trunk = open_trunk(folder, is_native=is_native)
    names = {router.names["weight"] for router in trunk.routers.values()}
    tensors = read_tensors(folder)
    changed = other(tensors, lambda name: name in names or bool(re.search(r"(gate|router)(\.layer)?\.weight", name)))
    assert len(changed) == len(names)
    reference = open_trunk(save_changed(tmp_path / "changed", folder, changed), is_native=is_native)
    stores = [ExpertStore(each.catalog, each.catalog.total_bytes) for each in (trunk, reference)]
    law = load(stores[0], read(save_variant(tmp_path / "law", changed), base_of(folder, trunk)))
    own, wanted = run(trunk, stores[0], [None] * 3), run(reference, stores[1], [None] * 3)
    assert_near(run(trunk, stores[0], [law, None, law]), [wanted[0], own[1], wanted[2]])
    for store in stores:
        store.close()


@pytest.mark.slow
@pytest.mark.parametrize("is_native", [False, True], ids=["torch", "native"])
def test_an_adapter_adds_to_the_router_of_a_variant(is_native: bool, tmp_path: Path) -> None:
    folder = make_checkpoint("qwen3_moe", tmp_path / "base")
    changed = other(read_tensors(folder), lambda name: name.endswith("mlp.gate.weight"))
    trunk = open_trunk(folder, is_native=is_native)
    reference = open_trunk(save_changed(tmp_path / "changed", folder, changed), is_native=is_native)
    stores = [ExpertStore(each.catalog, each.catalog.total_bytes) for each in (trunk, reference)]
    law = load(stores[0], read(save_variant(tmp_path / "law", changed), base_of(folder, trunk)))
    matrix = LoraMatrix(torch.randn(2, 32), torch.randn(8, 2), 0.5)
    routers = {f"model.layers.{layer}.mlp.gate": (matrix,) for layer in range(3)}
    adapters = (WeightedAdapter(LoraAdapter("code", routers, {}), 1.0),)
    code, both = ChunkWeights(None, adapters), ChunkWeights(law.variant, adapters)
    own, wanted = run(trunk, stores[0], [code] * 3), run(reference, stores[1], [None, None, code])
    assert_near(run(trunk, stores[0], [law, code, both]), [wanted[0], own[1], wanted[2]])
    for store in stores:
        store.close()


def add_and_remove(folder: Path, base: Path) -> tuple[Path, Path]:
    """Save a variant that adds expert 8 and removes expert 2, and a checkpoint in which 8 takes the place of 2."""
    tensors = read_tensors(base)
    added = {
        name.replace("experts.3.", "experts.8."): tensor
        for name, tensor in other(tensors, lambda name: ".experts.3." in name).items()
    }
    rows = {
        name: torch.cat([tensor, torch.randn(1, tensor.shape[1]) * tensor.std()])
        for name, tensor in tensors.items()
        if name.endswith("mlp.gate.weight")
    }
    as_own = {name.replace("experts.8.", "experts.2."): tensor for name, tensor in added.items()}
    order = [0, 1, 8, 3, 4, 5, 6, 7]
    as_own |= {name: tensor[order].contiguous() for name, tensor in rows.items()}
    variant = save_variant(folder / "more", {**added, **rows}, {"greenroom_removed_experts": "[2]"})
    return variant, save_changed(folder / "changed", base, as_own)


@pytest.mark.slow
@pytest.mark.parametrize("is_native", [False, True], ids=["torch", "native"])
def test_added_and_removed_experts_give_the_logits_of_such_a_checkpoint(is_native: bool, tmp_path: Path) -> None:
    folder = make_checkpoint("qwen3_moe", tmp_path / "base")
    variant, changed = add_and_remove(tmp_path, folder)
    trunk, reference = open_trunk(folder, is_native=is_native), open_trunk(changed, is_native=is_native)
    stores = [ExpertStore(each.catalog, each.catalog.total_bytes * 2) for each in (trunk, reference)]
    more = load(stores[0], read(variant, base_of(folder, trunk)))
    own, wanted = run(trunk, stores[0], [None] * 3), run(reference, stores[1], [None] * 3)
    assert_near(run(trunk, stores[0], [more, more, None]), [wanted[0], wanted[1], own[2]])
    for store in stores:
        store.close()


def test_the_next_layers_experts_of_a_variant_are_predicted_by_its_own_router(tmp_path: Path) -> None:
    folder = make_checkpoint("qwen3_moe", tmp_path / "base")
    variant, changed = add_and_remove(tmp_path, folder)
    trunk, reference = open_trunk(folder, is_native=False), open_trunk(changed, is_native=False)
    more = ChunkWeights(variant=read(variant, base_of(folder, trunk)).variant)
    chunks = [SequenceChunk([1], 0, [[0]], weights=weights) for weights in (None, more)]
    variants = StepVariants(PlaceTables(trunk._layers.values()), chunks, RowOwners(chunks).owners)
    hidden_states = torch.randn(2, trunk.config.hidden_size)
    for layer, gate in trunk.gates.items():
        own, wanted = gate(GateInput(hidden_states)), reference.gates[layer](GateInput(hidden_states))
        wanted[wanted == 2] = 8
        assert gate(GateInput(hidden_states, variants)).tolist() == [own[0].tolist(), wanted[1].tolist()]


@pytest.mark.parametrize("is_native", [False, True], ids=["torch", "native"])
def test_a_removed_expert_is_never_chosen(is_native: bool, tmp_path: Path) -> None:
    folder = make_checkpoint("mixtral", tmp_path / "base")
    trunk = open_trunk(folder, is_native=is_native)
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    fewer = load(
        store,
        read(save_variant(tmp_path / "fewer", {}, {"greenroom_removed_experts": "[0, 3]"}), base_of(folder, trunk)),
    )
    before = store.statistics().tokens.copy()
    run(trunk, store, [fewer] * 3)
    used = (store.statistics().tokens - before).sum(0)
    store.close()
    assert used[[0, 3]].sum() == 0
    assert used.sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_variant_of_a_pack_is_quantised_as_the_pack_is(weights: str, tmp_path: Path) -> None:
    folder = make_checkpoint("qwen3_moe", tmp_path / "base", torch.bfloat16)
    changed = other(read_tensors(folder), is_expert)
    packed = pack(folder, tmp_path / "pack", weights)
    reference = pack(save_changed(tmp_path / "changed", folder, changed), tmp_path / "changed-pack", weights)
    trunks = [open_trunk(each, is_native=True) for each in (packed, reference)]
    stores = [ExpertStore(each.catalog, each.catalog.total_bytes * 2) for each in trunks]
    base = base_of(folder, trunks[0], is_pack=True)
    law = load(stores[0], read(save_variant(tmp_path / "law", changed), base))
    assert_equal(run(trunks[0], stores[0], [law] * 3), run(trunks[1], stores[1], [None] * 3))
    for store in stores:
        store.close()


@pytest.mark.slow
def test_an_expert_gets_from_the_base_what_the_variant_lacks(tmp_path: Path) -> None:
    folder = make_checkpoint("qwen3_moe", tmp_path / "base")
    changed = other(read_tensors(folder), lambda name: is_expert(name) and "down_proj" in name)
    trunk = open_trunk(folder, is_native=False)
    reference = open_trunk(save_changed(tmp_path / "changed", folder, changed), is_native=False)
    stores = [ExpertStore(each.catalog, each.catalog.total_bytes * 2) for each in (trunk, reference)]
    law = load(stores[0], read(save_variant(tmp_path / "law", changed), base_of(folder, trunk)))
    assert_near(run(trunk, stores[0], [law] * 3), run(reference, stores[1], [None] * 3))
    for store in stores:
        store.close()
