"""A pass over prompts gives the bits of its steps one after another, and reads each expert once."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from expert_store import ExpertKey, ExpertLoadError, ExpertStore, least_bytes
from server.kernels.compute_pool import ComputePool
from server.kernels.native.available import availability
from server.kernels.native.library import Kernels
from server.loading.memory import needs_of_trunk
from server.memory.step_memory import pass_token_bytes
from server.model.attention.kv_cache import KVCache
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.chunk_weights import ChunkWeights, WeightedAdapter
from server.model.expert_variant import ExpertVariant, VariantLayer
from server.model.lora_adapter import LoraAdapter, LoraMatrix
from server.model.multimodal.image_processor import MediaProcessor
from server.model.prompt_pass import PromptPass
from server.model.recurrent.states import StateCache
from server.model.step import SequenceChunk, StepOutput
from server.model.trunk.trunk import Trunk
from server.model.trunk_loader import load_trunk
from tests.checkpoints import make_checkpoint
from tests.expert_store.gated_reads import GatedReads
from tests.expert_store.waiting import wait_until_idle
from tests.server.model.multimodal.test_image_parity import make_prompts, save_model

SOME = (  # keys and values, latents, states, windows; what layers keep and pass on to others
    "qwen3_moe",
    "gpt_oss",
    "deepseek_v3",
    "qwen3_5_moe",
    "gemma4",
    "deepseek_v4",
    "qwen4_exp_text",
    "inkling_text",
    "muse_spark",
    "zaya",
)
FAMILIES = (  # of each kind of mixer, and of what layers keep and pass on to others
    "qwen3_moe",
    "gpt_oss",
    "deepseek_v3",
    "glm_moe_dsa",
    "qwen3_next",
    "nemotron_h",
    "jamba",
    "kimi_linear",
    "minimax",
    "lfm2_moe",
    "longcat_flash",
    "deepseek_v4",
    "hy_v4",
    "qwen4_exp_text",
    "inkling_text",
    "inkling2_text",
    "muse_spark",
    "ernie4_5_vl_moe",
    "zaya",
)
VISIONS = ("qwen3_vl_moe", "qwen4_exp", "ernie4_5_vl_moe")  # additions to layers, streams, experts for images
BLOCK = 16
NUM_BLOCKS = 12
STEPS = ((0, 20), (20, 21), (21, 48))  # tokens of the first prompt in each step
LONG = [index % 89 + 3 for index in range(48)]
SHORT = [7, 3, 31, 12, 5]  # a second prompt, in the last step

pytestmark = pytest.mark.skipif(not availability().runnable, reason="the native kernels were not built")


class Ran(NamedTuple):
    """The outputs of the steps, and logits of each prompt's next token."""

    outputs: Sequence[StepOutput]
    next_logits: torch.Tensor


def steps_of(trunk: Trunk) -> list[list[SequenceChunk]]:
    groups = len(trunk.facts.kv_groups)
    long, short = [[*range(4)]] * groups, [[*range(4, 6)]] * groups
    steps = [
        [SequenceChunk(LONG[first:last], first, long, num_logits=int(last == len(LONG)), num_prompt=len(LONG))]
        for first, last in STEPS
    ]
    steps[-1].append(SequenceChunk(SHORT, 0, short, slot=1, num_prompt=len(SHORT)))
    return steps


def finish(prompt_pass: PromptPass) -> None:
    """Run the units that are left of a pass."""
    while not prompt_pass.is_finished:
        prompt_pass.advance(wait_seconds=1.0)


def run_by_layers(
    trunk: Trunk, store: ExpertStore, steps: Sequence[Sequence[SequenceChunk]], cache: KVCache, states: StateCache
) -> list[StepOutput]:
    prompt_pass = trunk.begin_pass(steps, cache, store, states=states)
    finish(prompt_pass)
    return [*prompt_pass.finish()]


def caches(trunk: Trunk, num_slots: int = 2) -> tuple[KVCache, StateCache]:
    groups = trunk.facts.kv_groups
    return KVCache(groups, [NUM_BLOCKS] * len(groups), BLOCK), trunk.new_states(num_slots, 1)


def run(trunk: Trunk, store: ExpertStore, *, by_layers: bool) -> Ran:
    """Run the steps of both prompts, and a step with another token of each."""
    (cache, states), steps = caches(trunk), steps_of(trunk)
    if by_layers:
        outputs = run_by_layers(trunk, store, steps, cache, states)
    else:
        outputs = [trunk.forward(step, cache, store, states=states) for step in steps]
    tables = [step.block_tables for step in steps[-1]]
    decode = [
        SequenceChunk([9], len(LONG), tables[0], num_prompt=len(LONG)),
        SequenceChunk([9], len(SHORT), tables[1], slot=1, num_prompt=len(SHORT)),
    ]
    return Ran(outputs, trunk.forward(decode, cache, store, states=states).logits.clone())


def open_store(trunk: Trunk) -> ExpertStore:
    """Return a store with slots for two layers."""
    widest = max(len(layer.experts) for layer in trunk.catalog.layers.values())
    return ExpertStore(trunk.catalog, least_bytes(trunk.catalog, 2 * widest))


def load(family: str, folder: Path) -> Trunk:
    return load_folder(make_checkpoint(family, folder))


def load_folder(folder: Path) -> Trunk:
    trunk = load_trunk(folder, torch.float32, pool=ComputePool(2, Kernels(2)))
    assert isinstance(trunk, Trunk)
    return trunk


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_gives_the_bits_of_its_steps_one_after_another(family: str, tmp_path: Path) -> None:
    trunk = load(family, tmp_path)
    store = open_store(trunk)
    one_by_one, by_layers = (run(trunk, store, by_layers=each) for each in (False, True))
    store.check_integrity()
    store.close()
    for found, wanted in zip(by_layers.outputs, one_by_one.outputs, strict=True):
        assert torch.equal(found.logits, wanted.logits)
        assert {layer: found.routing[layer].tolist() for layer in found.routing} == {
            layer: wanted.routing[layer].tolist() for layer in wanted.routing
        }
    assert torch.equal(by_layers.next_logits, one_by_one.next_logits)


def test_a_pass_gives_the_logits_and_hidden_states_of_all_tokens(tmp_path: Path) -> None:
    trunk = load("qwen3_moe", tmp_path)
    store = open_store(trunk)
    steps = [
        [replace(chunk, num_logits=chunk.num_tokens, num_hidden=chunk.num_tokens) for chunk in step]
        for step in steps_of(trunk)
    ]
    (cache, states), (other_cache, other_states) = caches(trunk), caches(trunk)
    wanted = [trunk.forward(step, cache, store, states=states) for step in steps]
    found = run_by_layers(trunk, store, steps, other_cache, other_states)
    store.close()
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one.logits, other.logits)
        assert one.hidden is not None
        assert other.hidden is not None
        assert torch.equal(one.hidden, other.hidden)


@pytest.mark.parametrize("family", ["qwen3_moe", "glm_moe_dsa", "hy_v4", "qwen4_exp_text"])
def test_the_plan_counts_what_a_pass_holds_of_a_token(family: str, tmp_path: Path) -> None:
    """Also the keys that an indexer leaves to later layers, and several rows of the residual stream."""
    trunk = load(family, tmp_path)
    assert pass_token_bytes(needs_of_trunk(trunk).step) == trunk.pass_token_bytes


def test_a_pass_reads_no_expert_twice(tmp_path: Path) -> None:
    trunk = load("qwen3_moe", tmp_path)
    store = open_store(trunk)
    outputs = run_by_layers(trunk, store, steps_of(trunk), *caches(trunk))
    used = {
        (layer, expert)
        for output in outputs
        for layer, rows in output.routing.items()
        for expert in rows.ravel().tolist()
    }
    loads = store.statistics().loads["disk", "host"]
    store.close()
    num_experts = sum(len(layer.experts) for layer in trunk.catalog.layers.values())
    assert len(used) <= sum(loads.buckets) <= num_experts  # some are read ahead in vain


def test_a_pass_saves_the_bytes_of_experts_that_several_of_its_steps_use(tmp_path: Path) -> None:
    trunk = load("qwen3_moe", tmp_path)
    store, num_uses = open_store(trunk), Counter[tuple[int, int]]()
    prompt_pass = trunk.begin_pass(steps_of(trunk), caches(trunk)[0], store)
    while not prompt_pass.is_finished:
        prompt_pass.advance(wait_seconds=1.0)
    for output in prompt_pass.finish():
        num_uses.update(
            (layer, expert) for layer, rows in output.routing.items() for expert in set(rows.ravel().tolist())
        )
    store.close()
    num_again = num_uses.total() - len(num_uses)
    assert prompt_pass.saved_bytes == num_again * trunk.catalog.read_bytes(ExpertKey(0, 0)) > 0


def test_a_cancelled_pass_gives_back_all_experts(tmp_path: Path) -> None:
    trunk = load("qwen3_moe", tmp_path)
    store = open_store(trunk)
    cache, states = caches(trunk)
    prompt_pass = trunk.begin_pass(steps_of(trunk), cache, store, states=states)
    while prompt_pass.progress < 1 / len(trunk.routers):
        prompt_pass.advance(wait_seconds=1.0)
    prompt_pass.cancel()
    wait_until_idle(store)
    absent = set(store.absent())
    every = [
        ExpertKey(layer, expert)
        for layer, entry in trunk.catalog.layers.items()
        for expert in range(len(entry.experts))
    ]
    resident = [key for key in every if key not in absent]
    evicted = store.evict(resident)
    store.close()
    assert evicted == len(resident) > 0


def adapted(trunk: Trunk) -> ChunkWeights:
    """Return an adapter of all linear layers."""
    generator, linears = torch.Generator().manual_seed(2), {}
    for name, (inputs, outputs) in trunk.adaptable.items():
        down, up = (torch.randn(shape, generator=generator) for shape in ((4, inputs), (outputs, 4)))
        linears[name] = (LoraMatrix(down, up, 0.1),)
    return ChunkWeights(adapters=(WeightedAdapter(LoraAdapter("law", linears, {}), 1.0),))


def with_variant(trunk: Trunk) -> ChunkWeights:
    """Return a variant with the experts of each layer in the reverse order."""
    layers = {
        layer: VariantLayer(tuple(ExpertKey(layer, expert) for expert in reversed(range(len(entry.experts)))))
        for layer, entry in trunk.catalog.layers.items()
    }
    return ChunkWeights(variant=ExpertVariant("law", "law@1", layers))


@pytest.mark.parametrize("make_weights", [adapted, with_variant])
@pytest.mark.parametrize("family", SOME)
def test_a_pass_gives_the_bits_of_its_steps_with_weights_of_a_request(
    family: str, make_weights: Callable[[Trunk], ChunkWeights], tmp_path: Path
) -> None:
    trunk = load(family, tmp_path)
    store, weights = open_store(trunk), make_weights(trunk)
    steps = [[replace(step[0], weights=weights), *step[1:]] for step in steps_of(trunk)]
    (cache, states), (other_cache, other_states) = caches(trunk), caches(trunk)
    wanted = [trunk.forward(step, cache, store, states=states) for step in steps]
    found = run_by_layers(trunk, store, steps, other_cache, other_states)
    base = run(trunk, store, by_layers=False)
    store.close()
    assert torch.equal(found[-1].logits, wanted[-1].logits)
    assert not torch.equal(found[-1].logits[0], base.outputs[-1].logits[0])


@pytest.mark.parametrize("family", VISIONS)
def test_a_pass_over_prompts_with_images_gives_the_bits_of_its_steps(family: str, tmp_path: Path) -> None:
    trunk = load_folder(save_model(family, tmp_path))
    store, groups = open_store(trunk), len(trunk.facts.kv_groups)
    prompts = make_prompts(MediaProcessor(FolderCheckpoint(tmp_path)))
    tables = [[[*range(4 * slot, 4 * slot + 4)]] * groups for slot in range(len(prompts))]
    steps = [
        [
            SequenceChunk(piece, first, tables[slot], slot=slot, media=media, num_prompt=len(token_ids))
            for slot, (token_ids, media) in enumerate(prompts)
            if (piece := token_ids[first : first + BLOCK])
        ]
        for first in range(0, max(len(token_ids) for token_ids, _ in prompts), BLOCK)
    ]
    (cache, states), (other_cache, other_states) = caches(trunk, 3), caches(trunk, 3)
    wanted = [trunk.forward(step, cache, store, states=states) for step in steps]
    found = run_by_layers(trunk, store, steps, other_cache, other_states)
    store.close()
    assert all(torch.equal(one.logits, other.logits) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("family", SOME)
def test_a_pass_after_cached_tokens_gives_the_bits_of_its_steps(family: str, tmp_path: Path) -> None:
    trunk = load(family, tmp_path)
    store, steps = open_store(trunk), steps_of(trunk)
    wanted = run(trunk, store, by_layers=False).outputs
    cache, states = caches(trunk)
    trunk.forward(steps[0], cache, store, states=states)
    found = run_by_layers(trunk, store, steps[1:], cache, states)
    store.close()
    assert torch.equal(found[-1].logits, wanted[-1].logits)


def evict_all(store: ExpertStore) -> int:
    """Evict all experts in memory; return how many are in use."""
    wait_until_idle(store)
    resident = list(store.residents())
    return len(resident) - store.evict(resident)


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3_5_moe", "ernie4_5_vl_moe"])
@pytest.mark.parametrize("num_units", [0, 1, 4])  # before it: in the first step, the second, and the experts
def test_a_read_that_fails_in_a_pass_leaves_nothing_behind(
    family: str, num_units: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = load(family, tmp_path)
    store = open_store(trunk)
    wanted = run(trunk, store, by_layers=False)
    evict_all(store)
    prompt_pass = trunk.begin_pass(steps_of(trunk), caches(trunk)[0], store, states=caches(trunk)[1])
    for _ in range(num_units):
        prompt_pass.advance(wait_seconds=1.0)
    evict_all(store)
    reads = GatedReads(monkeypatch, OSError(5, "Input/output error"))
    reads.is_open.set()
    with pytest.raises(ExpertLoadError, match=r"expert \d of layer \d: .*Input/output error"):
        finish(prompt_pass)
    prompt_pass.cancel()
    assert evict_all(store) == 0
    reads.error = None
    found = run(trunk, store, by_layers=True)
    store.check_integrity()
    store.close()
    assert torch.equal(found.outputs[-1].logits, wanted.outputs[-1].logits)
    assert torch.equal(found.next_logits, wanted.next_logits)


def cut_short(path: Path) -> None:
    os.truncate(path, 600)


def write_to(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


@pytest.mark.parametrize("change", [cut_short, write_to])
def test_a_file_that_changes_while_a_pass_holds_experts_ends_the_pass(
    change: Callable[[Path], None], tmp_path: Path
) -> None:
    trunk = load("qwen3_moe", tmp_path)
    store = open_store(trunk)
    prompt_pass = begin_reading(trunk, store)
    change(tmp_path / "model.safetensors")
    with pytest.raises(ExpertLoadError, match=r"layer \d: .*(cut short or replaced|was written to while it is served)"):
        finish(prompt_pass)
    prompt_pass.cancel()
    assert evict_all(store) == 0
    store.check_integrity()
    store.close()


def test_a_pass_goes_on_with_the_file_that_it_began_with_if_another_takes_its_name(tmp_path: Path) -> None:
    trunk = load("qwen3_moe", tmp_path)
    store = open_store(trunk)
    wanted = run(trunk, store, by_layers=False).outputs
    evict_all(store)
    prompt_pass = begin_reading(trunk, store)
    (tmp_path / "another").write_bytes(b"another")
    (tmp_path / "another").replace(tmp_path / "model.safetensors")
    finish(prompt_pass)
    found = [*prompt_pass.finish()]
    store.close()
    assert torch.equal(found[-1].logits, wanted[-1].logits)


def begin_reading(trunk: Trunk, store: ExpertStore) -> PromptPass:
    """Return a pass that holds experts of the first layer, and has not read those of the last."""
    cache, states = caches(trunk)
    prompt_pass = trunk.begin_pass(steps_of(trunk), cache, store, states=states)
    while not store.residents():
        prompt_pass.advance(wait_seconds=1.0)
    return prompt_pass


def shrink(store: ExpertStore) -> None:
    store.resize(host_bytes=least_bytes(store.catalog, len(store.catalog.layers[0].experts)))


def pin(store: ExpertStore) -> None:
    store.pin([ExpertKey(1, 0), ExpertKey(1, 1)])


@pytest.mark.parametrize("change", [shrink, pin])
def test_a_pass_gives_the_same_bits_if_the_memory_changes_meanwhile(
    change: Callable[[ExpertStore], None], tmp_path: Path
) -> None:
    trunk = load("qwen3_moe", tmp_path)
    store = open_store(trunk)
    wanted = run(trunk, store, by_layers=False).outputs
    prompt_pass = trunk.begin_pass(steps_of(trunk), caches(trunk)[0], store, states=caches(trunk)[1])
    prompt_pass.advance(wait_seconds=1.0)
    change(store)
    finish(prompt_pass)
    found = [*prompt_pass.finish()]
    store.check_integrity()
    store.close()
    assert torch.equal(found[-1].logits, wanted[-1].logits)
