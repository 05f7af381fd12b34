"""Layers whose indexers choose the keys of each token run natively, with the choices of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional as F
from transformers.models.deepseek_v32 import modeling_deepseek_v32

from expert_store import ExpertStore
from server.kernels.compute_pool import ComputePool
from server.kernels.native.available import availability
from server.model.sequential.sequential_trunk import SequentialTrunk
from server.model.trunk.trunk import Trunk
from server.model.trunk_loader import load_trunk
from tests.checkpoints import save_checkpoint
from tests.families import make_config
from tests.server.model.attention.step_checks import check_blocks_of_another
from tests.server.model.test_parity import generate

TOLERANCE = 1e-5  # of the range of the logits
PROMPTS = [[5, 17, 99, 3, 42, 8, 64, 23, 11, 90, 12, 13], [7, 3], [index % 113 + 3 for index in range(70)]]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not availability().runnable, reason="the native kernels were not built"),
]


def written(
    trunk: Trunk | SequentialTrunk, chunk: int = 64, prompts: list[list[int]] = PROMPTS
) -> list[tuple[list[int], torch.Tensor]]:
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    try:
        return generate(trunk, store, chunk, steps=3, block_size=16, prompts=prompts)
    finally:
        store.close()


@torch.inference_mode()
def read_by_token(model: Any, tokens: list[int]) -> torch.Tensor:
    cache = transformers.DynamicCache(config=model.config)
    return torch.stack([model(torch.tensor([[token]]), cache=cache, use_cache=True).logits[0, -1] for token in tokens])


def check_by_token(folder: Path, pool: ComputePool) -> None:
    """Check that native layers write what transformers does if it reads one token at a time."""
    native = load_trunk(folder, torch.float32, pool=pool)
    assert native.facts.program.is_native
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for prompt, (tokens, logits) in zip(PROMPTS, written(native), strict=True):
        expected = read_by_token(model, [*prompt, *tokens[:-1]])[-len(tokens) :]
        assert tokens == expected.argmax(-1).tolist()
        assert (logits - expected).abs().max() <= TOLERANCE * (expected.max() - expected.min())


@pytest.mark.parametrize(
    ("family", "top_k"), [("deepseek_v32", 1), ("deepseek_v32", 4), ("deepseek_v32", 20), ("glm_moe_dsa", 16)]
)
def test_of_keys_with_equal_scores_those_of_transformers_are_chosen(
    family: str, top_k: int, tmp_path: Path, pool: ComputePool
) -> None:
    """A key that no head looks at has the score zero. With more keys at once, transformers decides in another way."""
    config = make_config(family)
    config.index_n_heads, config.index_topk = 2, top_k
    check_by_token(save_checkpoint(config, tmp_path), pool)


@pytest.mark.parametrize("types", ["full shared shared", "full full shared"])
def test_layers_share_the_keys_that_one_before_them_chose(types: str, tmp_path: Path, pool: ComputePool) -> None:
    config = make_config("glm_moe_dsa")
    config.indexer_types = types.split()
    folder = save_checkpoint(config, tmp_path)
    native = load_trunk(folder, torch.float32, pool=pool)
    assert native.facts.program.is_native
    for (_, logits), (_, expected) in zip(written(native, 5), written(load_trunk(folder, torch.float32)), strict=True):
        assert (logits - expected).abs().max() <= TOLERANCE * (expected.max() - expected.min())


def test_queries_with_gates_behind_them_attend_to_chosen_keys(tmp_path: Path, pool: ComputePool) -> None:
    """Queries take the rows before their norm, too; the indexer's do not."""
    folder = save_checkpoint(make_config("axk2"), tmp_path)
    native = load_trunk(folder, torch.float32, pool=pool)
    assert native.facts.program.is_native
    for (_, logits), (_, expected) in zip(written(native, 5), written(load_trunk(folder, torch.float32)), strict=True):
        assert (logits - expected).abs().max() <= TOLERANCE * (expected.max() - expected.min())


def test_an_indexer_that_scores_in_another_way_is_left_to_its_module(
    tmp_path: Path, pool: ComputePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_checkpoint(make_config("deepseek_v32"), tmp_path)
    monkeypatch.setattr(modeling_deepseek_v32.F, "relu", F.silu)
    trunk = load_trunk(folder, torch.float32, pool=pool)
    assert not trunk.facts.program.is_sequential
    assert "its indexer scores keys in another way" in str(trunk.facts.program.reason)


def test_index_keys_lie_in_the_blocks_of_the_cache(tmp_path: Path, pool: ComputePool) -> None:
    """Behind the latent and the rotated key; a layer that shares a choice has none."""
    folder = save_checkpoint(make_config("glm_moe_dsa"), tmp_path)
    (group,) = load_trunk(folder, torch.float32, pool=pool).facts.kv_groups
    assert [shape.dim for shape in group.shapes.values()] == [16 + 8 + 16, 16 + 8, 16 + 8 + 16]


def test_layers_with_a_window_attend_to_the_last_latents(tmp_path: Path, pool: ComputePool) -> None:
    """They run beside layers with an indexer, and keep no index keys."""
    folder = save_checkpoint(make_config("dots3_note_text"), tmp_path)
    native = load_trunk(folder, torch.float32, pool=pool)
    assert native.facts.program.is_native
    kept = {group.window: [shape.dim for shape in group.shapes.values()] for group in native.facts.kv_groups}
    assert kept == {None: [16 + 8 + 16] * 2, 6: [16 + 8]}
    for (_, logits), (_, expected) in zip(written(native, 5), written(load_trunk(folder, torch.float32)), strict=True):
        assert (logits - expected).abs().max() <= TOLERANCE * (expected.max() - expected.min())


@pytest.mark.parametrize("num_local", [0, 1, 2])
def test_heads_attend_to_the_blocks_of_keys_that_transformers_chooses(
    num_local: int, tmp_path: Path, pool: ComputePool
) -> None:
    config = make_config("minimax_m3_vl_text")
    config.index_local_blocks = num_local
    check_by_token(save_checkpoint(config, tmp_path), pool)


@pytest.mark.parametrize(("tokens", "top_k"), [(3, 2), (16, 1), (32, 1), (2, 33)])
def test_tokens_attend_to_the_pools_of_keys_that_transformers_chooses(
    tokens: int, top_k: int, tmp_path: Path, pool: ComputePool
) -> None:
    """A pool may end in another block of the cache than it begins in, and a short prompt may not fill any."""
    config = make_config("qwen4_exp_text")
    config.indexer_compress_ratio, config.indexer_budget = tokens, tokens * top_k
    check_by_token(save_checkpoint(config, tmp_path), pool)


def test_chosen_keys_may_fill_several_parts_of_attention(tmp_path: Path, pool: ComputePool) -> None:
    config = make_config("qwen4_exp_text")
    config.layer_types, config.max_position_embeddings = ["linear_attention", "indexed_attention"], 1024
    config.num_hidden_layers, config.indexer_budget = 2, 540
    folder, prompts = save_checkpoint(config, tmp_path), [[index % 113 + 3 for index in range(600)]]
    native = load_trunk(folder, torch.float32, pool=pool)
    assert native.facts.program.is_native
    (((_, logits),), ((_, expected),)) = (
        written(each, 200, prompts) for each in (native, load_trunk(folder, torch.float32))
    )
    assert (logits - expected).abs().max() <= TOLERANCE * (expected.max() - expected.min())


def test_a_sequence_continues_from_pools_of_another(tmp_path: Path, pool: ComputePool) -> None:
    """One pool begins in a block of the other sequence and ends in an own one."""
    config = make_config("qwen4_exp_text")
    config.layer_types, config.ple_layer_ids, config.indexer_compress_ratio = ["indexed_attention"] * 3, [], 3
    config.indexer_budget = 6
    native = load_trunk(save_checkpoint(config, tmp_path), torch.float32, pool=pool)
    assert isinstance(native, Trunk)
    assert native.facts.program.is_native
    check_blocks_of_another(native)


@pytest.mark.parametrize("family", ["minimax_m3_vl_text", "qwen4_exp_text"])
def test_company_and_chunks_change_no_bit_of_attention_to_chosen_keys(
    family: str, tmp_path: Path, pool: ComputePool
) -> None:
    native = load_trunk(save_checkpoint(make_config(family), tmp_path), torch.float32, pool=pool)
    ((_, alone),) = written(native, prompts=PROMPTS[2:])
    for chunk in (5, 64):
        assert torch.equal(written(native, chunk)[2][1], alone)


def test_index_keys_of_blocks_have_rows_of_their_own(tmp_path: Path, pool: ComputePool) -> None:
    folder = save_checkpoint(make_config("minimax_m3_vl_text"), tmp_path)
    (group,) = load_trunk(folder, torch.float32, pool=pool).facts.kv_groups
    assert [shape.index_dim for shape in group.shapes.values()] == [0, 16, 16]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"no_rope_layers": [1, 0, 1]},
        {"kv_source_layers": [0, 0, 0]},
        {"kv_source_layers": [0, 0, 0], "indexer_types": ["full", "shared", "full"]},
        {"kv_source_layers": [0, 0, 0], "no_rope_layers": [0, 0, 0]},
    ],
    ids=["rotary", "one without positions", "shared latents", "shared choice", "none with positions"],
)
def test_layers_that_share_latents_give_what_the_modules_give(
    settings: dict[str, Any], tmp_path: Path, pool: ComputePool
) -> None:
    """Their queries have a factor for each head, which grows with the position."""
    config = make_config("mistral_large4")
    for name, value in settings.items():
        setattr(config.text_config, name, value)
    folder = save_checkpoint(config, tmp_path)
    native = load_trunk(folder, torch.float32, pool=pool)
    assert native.facts.program.is_native
    for (_, logits), (_, expected) in zip(written(native, 5), written(load_trunk(folder, torch.float32)), strict=True):
        assert (logits - expected).abs().max() <= TOLERANCE * (expected.max() - expected.min())
