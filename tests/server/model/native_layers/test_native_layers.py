"""Models whose decoder layers run natively have the results of transformers' modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from expert_store import ExpertStore, least_bytes, write_pack
from server.kernels.compute_pool import ComputePool
from server.kernels.native.available import availability
from server.kernels.native.library import Kernels
from server.model.attention.kv_cache import KVCache
from server.model.checkpoint import packed_trunk
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.checkpoint.packed_trunk import TrunkFormat
from server.model.checkpoint.read_config import read_config
from server.model.model_building import build_model
from server.model.opening.packing import pack_source
from server.model.sequential.sequential_trunk import SequentialTrunk
from server.model.step import HostLogits, SequenceChunk
from server.model.trunk.adapter_targets import lora_targets
from server.model.trunk.trunk import Trunk
from server.model.trunk_loader import load_trunk
from tests.checkpoints import make_checkpoint, save_checkpoint
from tests.expert_store.waiting import TIMEOUT, wait_until_idle
from tests.families import WITH_TEXT_OF_ANOTHER, make_config, make_unusual_config
from tests.native_families import NATIVE_FAMILIES
from tests.server.model.test_parity import PROMPTS, generate

BLOCK = 16  # tokens; what the native attention takes
TOLERANCE = 1e-5  # of the range of the logits
UNCALLED = "the model does not call it with one row for each token"
NEVER_CALLED = {"o_a_proj", "dt_proj", "classifier"}  # of DeepSeek-V4, Jamba and LongCat

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not availability().runnable, reason="the native kernels were not built"),
]


def load_modules(folder: Path) -> Trunk | SequentialTrunk:
    """Load a model as the modules of transformers run it."""
    return load_trunk(folder, torch.float32)


def load(folder: Path, pool: ComputePool | None, dtype: torch.dtype = torch.float32) -> Trunk:
    trunk = load_trunk(folder, dtype, pool=pool)
    assert isinstance(trunk, Trunk)
    return trunk


def pack(folder: Path, trunk: TrunkFormat, family: str = "qwen3_moe") -> Path:
    checkpoint, out = make_checkpoint(family, folder / "checkpoint"), folder / "out"
    model = build_model(read_config(checkpoint), torch.bfloat16)
    write_pack(pack_source(model, FolderCheckpoint(checkpoint), "tiny", "bfloat16", trunk), out, 1, lambda _: None)
    return out


Written = list[tuple[list[int], torch.Tensor]]


@dataclass(frozen=True)
class Native:
    """A family on native layers, and what they write."""

    folder: Path
    trunk: Trunk
    written: Written


@pytest.fixture(scope="module", params=NATIVE_FAMILIES)
def native(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Native]:
    folder = make_checkpoint(request.param, tmp_path_factory.mktemp(request.param))
    kernels = Kernels(2)
    trunk = load(folder, ComputePool(2, kernels))
    yield Native(folder, trunk, write(trunk))
    kernels.close()


def write(trunk: Trunk | SequentialTrunk, prompts: list[list[int]] = PROMPTS, *, share: float = 0.0) -> Written:
    """Write with memory for a share of the experts, or for as few as possible."""
    least = least_bytes(trunk.catalog, trunk.facts.top_k)
    store = ExpertStore(trunk.catalog, max(least, int(share * trunk.catalog.total_bytes)))
    try:
        if share == 1:
            store.preload(store.absent(), TIMEOUT)
            wait_until_idle(store)
        return generate(trunk, store, 3, block_size=BLOCK, prompts=prompts)
    finally:
        store.close()


def assert_modules_give(written: Written, folder: Path) -> None:
    for (tokens, logits), (expected_tokens, expected) in zip(written, write(load_modules(folder)), strict=True):
        assert tokens == expected_tokens
        assert (logits - expected).abs().max() <= TOLERANCE * (expected.max() - expected.min())


def assert_native_layers_give_what_the_modules_give(folder: Path, pool: ComputePool) -> None:
    trunk = load(folder, pool)
    assert trunk.is_invariant, "it runs through the modules"
    assert_modules_give(write(trunk), folder)


def test_native_layers_give_what_the_modules_give(native: Native) -> None:
    assert native.trunk.is_invariant, "it runs through the modules"
    assert_modules_give(native.written, native.folder)


@pytest.mark.parametrize(("family", "weights"), [("qwen3_moe", "int8"), ("qwen3_moe", "int4"), ("deepseek_v3", "int8")])
def test_native_layers_read_packed_trunks(
    tmp_path: Path, pool: ComputePool, monkeypatch: pytest.MonkeyPatch, family: str, weights: TrunkFormat
) -> None:
    monkeypatch.setattr(packed_trunk, "LEAST_WEIGHTS", 1)
    assert_native_layers_give_what_the_modules_give(pack(tmp_path, weights, family), pool)


def test_projections_of_different_formats_give_what_the_modules_give(
    tmp_path: Path, pool: ComputePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_trunk, "LEAST_WEIGHTS", 32 * 32)  # as many as that of queries has
    assert_native_layers_give_what_the_modules_give(pack(tmp_path, "int8"), pool)


@pytest.mark.parametrize(
    "native", [name for name in NATIVE_FAMILIES if name not in WITH_TEXT_OF_ANOTHER], indirect=True
)
def test_other_sequences_change_no_bit_of_native_layers(native: Native) -> None:
    """The first one has its rows in the same places alone."""
    for prompt, (tokens, logits) in zip(PROMPTS[1:], native.written[1:], strict=True):
        ((alone_tokens, alone),) = write(native.trunk, [prompt])
        assert tokens == alone_tokens
        assert torch.equal(logits, alone)


def test_native_layers_take_adapters_of_all_linear_layers_that_modules_call_by_token(native: Native) -> None:
    uncalled = [name for name, reason in lora_targets(native.trunk).refused.items() if reason == UNCALLED]
    assert {name.rsplit(".", 1)[-1] for name in uncalled} <= NEVER_CALLED


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resident_experts_give_the_same_bits_as_paged_ones(
    tmp_path: Path, pool: ComputePool, family: str, dtype: torch.dtype
) -> None:
    trunk = load(make_checkpoint(family, tmp_path, dtype), pool, dtype)
    resident = write(trunk, share=1)
    for share in (0.0, 0.6):
        for (_, paged), (_, expected) in zip(write(trunk, share=share), resident, strict=True):
            assert torch.equal(paged, expected)


def test_layers_whose_experts_are_in_memory_run_in_one_call(
    tmp_path: Path, pool: ComputePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = load(make_checkpoint("qwen3_moe", tmp_path), pool)
    calls: list[tuple[int, int]] = []  # the first layer of each, and how many have run
    finished: list[int] = []

    def layers(kernels: Kernels, specs: Any, step: Any, place: int, first: int, end: int) -> int:
        calls.append((first, run(kernels, specs, step, place, first, end)))
        finished.extend(range(first, first + calls[-1][1]))
        return calls[-1][1]

    def chosen_experts(kernels: Kernels, layer: Any, *arguments: Any, are_last: bool) -> None:
        if are_last:
            finished.append(layer.index)
        run_chosen(kernels, layer, *arguments, are_last=are_last)

    run, run_chosen = Kernels.layers, Kernels.chosen_experts
    monkeypatch.setattr(Kernels, "layers", layers)
    monkeypatch.setattr(Kernels, "chosen_experts", chosen_experts)
    write(trunk, [PROMPTS[1]], share=0.9)
    num_layers = len(trunk.facts.program.layers)
    assert (0, 0) in calls  # nothing is in memory at first
    assert (0, num_layers) in calls
    assert finished == [*range(num_layers)] * (len(finished) // num_layers)


def test_a_step_writes_over_logits_of_the_last_one_that_nobody_has(tmp_path: Path, pool: ComputePool) -> None:
    trunk = load(make_checkpoint("qwen3_moe", tmp_path), pool)
    cache = KVCache(trunk.facts.kv_groups, [1] * len(trunk.facts.kv_groups), BLOCK)
    with closing(ExpertStore(trunk.catalog, trunk.catalog.total_bytes)) as store:

        def scores_after(token: int) -> HostLogits:
            chunk = SequenceChunk([token], 0, [[0]] * len(trunk.facts.kv_groups))
            scores = trunk.forward([chunk], cache, store).scores
            assert isinstance(scores, HostLogits)
            return scores

        first = scores_after(3).tensor()
        as_it_was = first.clone()
        second = scores_after(5)
        assert torch.equal(first, as_it_was)
        address = second.address
        del second
        assert scores_after(7).address == address


def test_queries_of_latent_attention_are_scaled_by_their_positions(tmp_path: Path, pool: ComputePool) -> None:
    config = make_config("mistral4")
    config.rope_parameters |= {"llama_4_scaling_beta": 0.7, "original_max_position_embeddings": 3}
    assert_native_layers_give_what_the_modules_give(save_checkpoint(config, tmp_path), pool)


def test_latent_attention_in_bfloat16_is_near_float32(tmp_path: Path, pool: ComputePool) -> None:
    folder = make_checkpoint("deepseek_v3", tmp_path, torch.bfloat16)
    for (_, found), (_, exact) in zip(
        write(load(folder, pool, torch.bfloat16)), write(load(folder, None)), strict=True
    ):
        assert float((found[0] - exact[0]).abs().mean()) < 0.03 * float(exact[0].max() - exact[0].min())


def test_an_unusual_model_goes_through_the_modules(tmp_path: Path, pool: ComputePool) -> None:
    assert not load(save_checkpoint(make_unusual_config(), tmp_path), pool).is_invariant


@pytest.mark.parametrize("correction", [0.05, 10.0])  # for some tokens, and for all
def test_tokens_that_choose_no_expert_have_what_the_modules_give(
    tmp_path: Path, pool: ComputePool, correction: float
) -> None:
    folder = make_checkpoint("zaya", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("balancing_biases")]:
        tensors[name][-1] = correction
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert_native_layers_give_what_the_modules_give(folder, pool)


@pytest.mark.parametrize("limit", [0.2, 100.0])  # numbers reach one of them
def test_heads_are_clipped_after_their_norms(tmp_path: Path, pool: ComputePool, limit: float) -> None:
    config = make_config("olmoe")
    config.clip_qkv = limit
    assert_native_layers_give_what_the_modules_give(save_checkpoint(config, tmp_path), pool)
