"""Models whose layers can't be served yet are refused in a line that says which layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from expert_store import ExpertStore
from server.model.errors import ModelError
from server.model.kv_cache import KVCache
from server.model.loading import build_model, load_trunk
from server.model.step import SequenceChunk
from server.model.support import check_layers
from tests.checkpoints import COMMON, LATENT, save_checkpoint

LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
MOE = {"moe_intermediate_size": 24, "num_experts_per_tok": 2}
QWEN3_NEXT = {
    **COMMON,
    **MOE,
    **LINEAR,
    "head_dim": 8,
    "intermediate_size": 48,
    "shared_expert_intermediate_size": 24,
    "num_experts": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_expand": 2}
REFUSED: dict[str, tuple[Any, str]] = {
    "qwen3_next": (lambda: transformers.Qwen3NextConfig(**QWEN3_NEXT), "linear-attention or Mamba layers"),
    "jamba": (
        lambda: transformers.JambaConfig(
            **COMMON, intermediate_size=48, num_experts=4, attn_layer_period=2, attn_layer_offset=1
        ),
        "linear-attention or Mamba layers",
    ),
    "granitemoehybrid": (
        lambda: transformers.GraniteMoeHybridConfig(
            **COMMON,
            **MAMBA,
            intermediate_size=24,
            shared_intermediate_size=24,
            num_local_experts=8,
            num_experts_per_tok=2,
            layer_types=["linear_attention", "full_attention", "linear_attention"],
        ),
        "linear-attention or Mamba layers",
    ),
    "nemotron_h": (
        lambda: transformers.NemotronHConfig(
            **{**COMMON, "num_hidden_layers": 4},
            n_routed_experts=8,
            layers_block_type=["linear_attention", "moe", "full_attention", "moe"],
        ),
        "linear-attention or Mamba layers",
    ),
    "minimax": (
        lambda: transformers.MiniMaxConfig(
            **COMMON,
            intermediate_size=24,
            num_local_experts=8,
            num_experts_per_tok=2,
            layer_types=["linear_attention", "full_attention", "linear_attention"],
        ),
        "linear-attention or Mamba layers",
    ),
    "lfm2_moe": (
        lambda: transformers.Lfm2MoeConfig(
            **COMMON, **MOE, intermediate_size=48, num_experts=8, layer_types=["conv", "full_attention", "conv"]
        ),
        "convolution layers",
    ),
    "deepseek_v32": (
        lambda: transformers.DeepseekV32Config(**LATENT, index_n_heads=2, index_head_dim=16, index_topk=4),
        "sparse-attention layers with an indexer",
    ),
    "llama4_text": (
        lambda: transformers.Llama4TextConfig(
            **COMMON,
            head_dim=8,
            intermediate_size=24,
            intermediate_size_mlp=48,
            num_local_experts=4,
            layer_types=["chunked_attention", "chunked_attention", "full_attention"],
        ),
        "chunked-attention layers",
    ),
}
PROMPT = [5, 17, 99, 3, 42, 8, 64, 23, 11, 90, 90, 12]


@pytest.mark.parametrize("name", REFUSED)
def test_the_kind_of_layer_is_named_before_any_weight_is_read(name: str) -> None:
    config, kind = REFUSED[name]
    with pytest.raises(ModelError, match=f"ForCausalLM has {kind}.*, which are not supported yet$"):
        check_layers(build_model(config(), torch.float32))


def test_a_checkpoint_is_refused_by_loading_it(tmp_path: Path) -> None:
    save_checkpoint(transformers.Qwen3NextConfig(**QWEN3_NEXT), tmp_path)
    with pytest.raises(ModelError, match="Qwen3NextForCausalLM has linear-attention or Mamba layers"):
        load_trunk(tmp_path, torch.float32)


@pytest.mark.parametrize("name", ["qwen3_next", "minimax", "nemotron_h"])
def test_tokens_that_mix_outside_of_attention_are_found_without_a_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers of a kind that nobody has heard of are refused rather than computed wrongly."""
    save_checkpoint(REFUSED[name][0](), tmp_path)
    monkeypatch.setattr("server.model.loading.check_layers", lambda model: None)
    with pytest.raises(ModelError, match=r"mixes tokens outside of its attention \(.*layers\.0\."):
        load_trunk(tmp_path, torch.float32)


def test_a_mask_by_another_rule_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose masks are chunked, though its layers say nothing of it."""
    config = transformers.MixtralConfig(
        **COMMON, intermediate_size=24, num_local_experts=4, num_experts_per_tok=2, sliding_window=None
    )
    save_checkpoint(config, tmp_path)
    chunked = transformers.masking_utils.create_chunked_causal_mask
    monkeypatch.setattr("transformers.models.mixtral.modeling_mixtral.create_causal_mask", chunked)
    monkeypatch.setattr(transformers.MixtralConfig, "attention_chunk_size", 4, raising=False)
    with pytest.raises(ModelError, match="by a rule other than causality and a sliding window"):
        load_trunk(tmp_path, torch.float32)


def test_a_window_that_is_in_the_mask_alone_is_found(tmp_path: Path) -> None:
    """PhiMoE does not tell attention of its window."""
    config = transformers.PhimoeConfig(
        **COMMON, intermediate_size=24, num_local_experts=4, num_experts_per_tok=2, sliding_window=5
    )
    save_checkpoint(config, tmp_path)
    trunk = load_trunk(tmp_path, torch.float32)
    assert [group.window for group in trunk.facts.kv_groups] == [5]
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    chunk = SequenceChunk(PROMPT, 0, [[0]], len(PROMPT))
    found = trunk.forward([chunk], KVCache(trunk.facts.kv_groups, [1], 16), store).logits
    store.close()
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.inference_mode():
        expected = stock(torch.tensor([PROMPT]), use_cache=False).logits[0]
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.max() - expected.min())
