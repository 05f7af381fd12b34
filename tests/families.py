"""One tiny configuration of every Mixture-of-Experts family that transformers has a causal language model of."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

SIZES: dict[str, Any] = {  # of each family, those that its config has
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "intermediate_size": 24,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "shared_intermediate_size": 24,
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "moe_num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "sliding_window": 6,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "unpadded_vocab_size": 120,
    "index_n_heads": 24,  # a key that none of them looks at scores zero, and which of these are chosen is chance
    "index_head_dim": 16,
    "index_topk": 4,
}
LATENT = {"num_key_value_heads": 4}
WINDOWS = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
HYBRID = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
SPARSE = {"mlp_layer_types": ["dense", "sparse", "sparse"]}

RELATIVE = "attention with relative position biases"
CHUNKED = "chunked-attention layers"
INDEXED = "sparse-attention layers with an indexer"
COMPRESSED = "compressed-attention layers"
ELSEWHERE = "no routed experts that Greenroom can page"


@dataclass(frozen=True)
class Family:
    """What its configuration has besides ``SIZES``, and what it is refused for if it is."""

    special: dict[str, Any] = field(default_factory=dict)
    refusal: str | None = None
    solo: str | None = None  # why its requests are computed one after the other, if they are


FAMILIES = {  # by the model type of its text
    "afmoe": Family(WINDOWS),
    "aria_text": Family(),
    "axk1": Family(LATENT),
    "axk2": Family(LATENT, solo=INDEXED),
    "bailing_hybrid": Family({**LATENT, **HYBRID}),
    "beam": Family({**WINDOWS, **SPARSE}),
    "cohere2_moe": Family(WINDOWS),
    "dbrx": Family(
        {
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 3,
            "max_seq_len": 256,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 8, "moe_top_k": 2, "hidden_size": 32},
        },
        ELSEWHERE,
    ),
    "deepseek_v2": Family(LATENT),
    "deepseek_v3": Family(LATENT),
    "deepseek_v32": Family(LATENT, solo=INDEXED),
    "deepseek_v4": Family(solo=COMPRESSED),
    "doge": Family({"is_moe": True, "num_experts": 16}, ELSEWHERE),
    "dots1": Family({**LATENT, **WINDOWS}),
    "dots3_note_text": Family(LATENT, solo=INDEXED),
    "ernie4_5_moe": Family(),
    "exaone_moe": Family(WINDOWS),
    "flex_olmo": Family(),
    "flint": Family({"mlp_only_layers": [0], **WINDOWS}),
    "gemma4_text": Family(
        {
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "enable_moe_block": True,
            "top_k_experts": 2,
            "hidden_size_per_layer_input": 0,
            "attention_k_eq_v": True,
        }
    ),
    "glm4_moe": Family(),
    "glm4_moe_lite": Family(LATENT),
    "glm_moe_dsa": Family(LATENT, solo=INDEXED),
    "gpt_oss": Family(WINDOWS),
    "granitemoe": Family(),
    "granitemoe_swa": Family(WINDOWS),
    "granitemoehybrid": Family({"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, **HYBRID}),
    "granitemoeshared": Family(),
    "hunyuan_v1_moe": Family(),
    "hy_v3": Family(),
    "hy_v4": Family(LATENT, solo=INDEXED),
    "inkling2_loop_text": Family(solo=RELATIVE),
    "inkling2_text": Family(solo=RELATIVE),
    "inkling_text": Family(solo=RELATIVE),
    "jamba": Family({"attn_layer_period": 2, "attn_layer_offset": 1}),
    "jetmoe": Family({}, ELSEWHERE),
    "kimi_linear": Family({**LATENT, **HYBRID}),
    "kolibri1": Family(WINDOWS),
    "laguna": Family(WINDOWS),
    "lara_mini": Family(),
    "lfm2_moe": Family({"layer_types": ["conv", "full_attention", "conv"]}),
    "llama4_text": Family({"intermediate_size_mlp": 48}, CHUNKED),
    "longcat_flash": Family(
        {**LATENT, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 24, "num_layers": 2, "zero_expert_num": 0}
    ),
    "mellum": Family(WINDOWS),
    "mimo_v2_flash": Family({"head_dim": 16, **WINDOWS, **SPARSE}),
    # its stock cache counts no tokens if the first layer is a recurrent one
    "minimax": Family({"layer_types": ["full_attention", "linear_attention", "full_attention"]}),
    "minimax_m2": Family(),
    "minimax_m3_vl_text": Family(
        {"layer_types": ["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"], "index_n_heads": 2}, solo=INDEXED
    ),
    "mixtral": Family(),
    "nemotron_h": Family(
        {"layers_block_type": ["linear_attention", "moe", "full_attention", "moe"], "time_step_min": 1e-9}
    ),
    "olmoe": Family(),
    "phimoe": Family(),
    "qwen2_moe": Family({"use_sliding_window": True, **WINDOWS}),
    "qwen3_5_moe_text": Family(HYBRID),
    "qwen3_moe": Family(),
    "qwen3_next": Family(HYBRID),
    "qwen4_exp_text": Family(
        {
            "layer_types": ["linear_attention", "indexed_attention", "linear_attention"],
            "indexer_n_heads": 24,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 4,
            "indexer_compress_ratio": 2,
            "hc_lowrank": 8,
            "ple_layer_ids": [1],
            "ngram_vocab_size_base": 50,
            "split_ngram_parts": 1,
        },
        solo=INDEXED,
    ),
    "sarvam_mla": Family(LATENT),
    "sarvam_moe": Family(),
    "solar_open": Family(),
    "zaya": Family({"num_experts_per_tok": 1}),
}


def make_config(model_type: str) -> PreTrainedConfig:
    """The tiny configuration of one of the families above."""
    config_class = CONFIG_MAPPING[model_type]
    names = {attribute.name for attribute in fields(config_class)}
    sizes = {name: size for name, size in SIZES.items() if name in names}
    return config_class(**{**sizes, **FAMILIES[model_type].special})
