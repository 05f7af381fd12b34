"""Adapters, variants, packed trunks and prefixes in the cache are exact on native layers, in families of each mixer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from peft import LoraConfig

from expert_store import ExpertStore
from server.engine.engine import Engine
from server.engine.interface import SamplingParams
from server.kernels.compute_pool import ComputePool
from server.kernels.native.available import availability
from server.model.checkpoint import packed_trunk
from server.model.chunk_weights import ChunkWeights, WeightedAdapter
from server.model.trunk.adapter_targets import lora_targets
from server.model.trunk.trunk import Trunk
from tests.checkpoints import make_checkpoint
from tests.server.engine import test_models
from tests.server.model.experts.test_variants import is_expert
from tests.server.model.lora.peft_adapters import PeftAdapters
from tests.server.model.lora.written_batch import STEPS, assert_near
from tests.server.model.native_layers.test_native_layers import (
    BLOCK,
    assert_native_layers_give_what_the_modules_give,
    load,
    pack,
)
from tests.server.model.test_parity import PROMPTS, generate
from tests.server.model.variants import base_of, other, read, read_tensors, save_variant
from tests.server.model.variants import load as load_variant

FAMILIES = (
    "bailing_hybrid",
    "dbrx",
    "gemma4_text",
    "granitemoehybrid",
    "inkling2_text",
    "inkling_text",
    "jamba",
    "kimi_linear",
    "lfm2_moe",
    "longcat_flash",
    "minimax",
    "muse_spark",
    "nemotron_h",
    "qwen3_5_moe_text",
    "zaya",
)

NO_VARIANTS = {"dbrx"}  # the rows of all experts are in one matrix of a checkpoint
PEFT_REFUSES = {"nemotron_h": ["out_proj"]}  # modules of a family

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not availability().runnable, reason="the native kernels were not built"),
]


def load_native(folder: Path, pool: ComputePool) -> Trunk:
    trunk = load(folder, pool)
    assert trunk.facts.program.is_native
    return trunk


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match:RuntimeWarning")
@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_of_all_linear_layers_give_what_peft_gives(name: str, tmp_path: Path, pool: ComputePool) -> None:
    folder = make_checkpoint(name, tmp_path)
    config = LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", exclude_modules=PEFT_REFUSES.get(name))
    peft = PeftAdapters(folder, {"law": config})
    trunk = load_native(folder, pool)
    weights = ChunkWeights(None, (WeightedAdapter(peft.adapter("law", lora_targets(trunk)), 1.0),))
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    found = generate(trunk, store, 3, STEPS, block_size=BLOCK, prompts=PROMPTS[:2], weights=[weights, None])
    expected = [peft.greedy(PROMPTS[0], STEPS, {"law": 1.0}), peft.greedy(PROMPTS[1], STEPS, {"law": 0.0})]
    store.close()
    assert_near(found, expected)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in NO_VARIANTS])
def test_variants_give_what_modules_give(name: str, tmp_path: Path, pool: ComputePool) -> None:
    folder = make_checkpoint(name, tmp_path / "base")
    changed = other(read_tensors(folder), is_expert)
    native, modules = load_native(folder, pool), load(folder, None)
    files = read(save_variant(tmp_path / "law", changed), base_of(folder, native))
    results = []
    for trunk in (native, modules):
        store = ExpertStore(trunk.catalog, 2 * trunk.catalog.total_bytes)
        law = load_variant(store, files)
        results.append(generate(trunk, store, 5, 4, block_size=BLOCK, weights=[law, None, law]))
        store.close()
    for (tokens, logits), (wanted_tokens, wanted) in zip(*results, strict=True):
        assert tokens == wanted_tokens
        assert (logits - wanted).abs().max() < 1e-4 * (wanted.max() - wanted.min())


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_trunks_give_what_modules_give(
    name: str, tmp_path: Path, pool: ComputePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_trunk, "LEAST_WEIGHTS", 1)
    assert_native_layers_give_what_the_modules_give(pack(tmp_path, "int8", name), pool)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prefix_in_the_cache_changes_no_bit(
    name: str, tmp_path: Path, pool: ComputePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_models, "BLOCK_SIZE", BLOCK)
    trunk = load_native(make_checkpoint(name, tmp_path), pool)
    store, sampling = (
        ExpertStore(trunk.catalog, trunk.catalog.total_bytes),
        SamplingParams(4, temperature=0.0, logprobs=1),
    )

    async def write_twice(engine: Engine) -> list[test_models.Written]:
        return [await test_models.write(engine, range(3, 53), sampling) for _ in range(2)]

    with test_models.engine_over(trunk, store, num_blocks=40) as (engine, _):
        first, second = asyncio.run(write_twice(engine))
        assert engine.statistics.prefix_cache_hits > BLOCK
    store.close()
    assert first == second
