"""Configs of native families at published widths: defaults of transformers, and what the published models change."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from server.model.architecture import register_model_type

DEEPSEEK_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
}
MROPE = {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e7,
        "partial_rotary_factor": 0.25,
        "mrope_section": [11, 11, 10],
        "mrope_interleaved": True,
    }
}
GLM_4_5V = {
    "head_dim": 128,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [8, 12, 12],
    },
}
GEMMA_4 = {
    "enable_moe_block": True,
    "num_experts": 128,
    "top_k_experts": 8,
    "moe_intermediate_size": 704,
    "hidden_size": 2816,
    "num_hidden_layers": 30,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "hidden_size_per_layer_input": 0,
    "intermediate_size": 2112,
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 2,
    "sliding_window": 1024,
}
MINIMAX_M3 = {
    "layer_types": ["full_attention"] * 3 + ["minimax_m3_sparse"] * 57,
    "mlp_layer_types": ["dense"] * 3 + ["sparse"] * 57,
}
NEMOTRON_3 = {
    "hidden_size": 2688,
    "num_key_value_heads": 2,
    "mamba_num_heads": 64,
    "intermediate_size": 1856,
    "moe_intermediate_size": 1856,
    "moe_shared_expert_intermediate_size": 3712,
    "n_routed_experts": 128,
    "num_experts_per_tok": 6,
    "routed_scaling_factor": 2.5,
    "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
}
INKLING = {"unpadded_vocab_size": 200058, "dense_mlp_idx": 2, "log_scaling_n_floor": 128000}
QWEN_4 = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 128,
    "indexer_budget": 2048,
    "indexer_compress_ratio": 4,
    "ple_layer_ids": [1],
    "eos_token_id": 1,
    "head_dim": 256,
    "rope_parameters": {**MROPE["rope_parameters"]},
}
STEP_3 = {
    "layer_types": (["full_attention"] + ["sliding_attention"] * 3) * 11 + ["full_attention"],
    "num_sliding_attention_heads": 96,
    "sliding_window": 512,
    "moe_router_scaling_factor": 3.0,
    "n_routed_experts": 288,
}
QWEN_3_30B = {
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
}
QWEN_3_OMNI = QWEN_3_30B | {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e6,
        "mrope_section": [24, 20, 20],
        "mrope_interleaved": True,
    }
}
WIDTHS: dict[str, dict[str, Any]] = {  # besides the defaults of transformers, by model type
    "dbrx": {
        "d_model": 6144,
        "n_heads": 48,
        "n_layers": 40,
        "max_seq_len": 32768,
        "vocab_size": 100352,
        "attn_config": {"kv_n_heads": 8, "clip_qkv": 8, "rope_theta": 500000},
        "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4, "hidden_size": 6144},
    },
    "deepseek_ocr2": {
        "text_config": {
            "vocab_size": 129280,
            "hidden_size": 1280,
            "num_hidden_layers": 12,
            "num_attention_heads": 10,
            "num_key_value_heads": 10,
            "intermediate_size": 6848,
            "moe_intermediate_size": 896,
            "num_experts_per_tok": 6,
            "mlp_layer_types": ["dense"] + ["sparse"] * 11,
        }
    },
    "deepseek_v2": {
        "hidden_size": 5120,
        "num_hidden_layers": 60,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "intermediate_size": 12288,
        "moe_intermediate_size": 1536,
        "n_routed_experts": 160,
        "num_experts_per_tok": 6,
        "first_k_dense_replace": 1,
        "topk_method": "group_limited_greedy",
        "n_group": 8,
        "topk_group": 3,
        "routed_scaling_factor": 16.0,
        "max_position_embeddings": 163840,
        "rope_parameters": DEEPSEEK_YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
    },
    "deepseek_v3": {"rope_parameters": DEEPSEEK_YARN, "max_position_embeddings": 163840},
    "deepseek_v32": {"rope_parameters": DEEPSEEK_YARN, "max_position_embeddings": 163840},
    "dots1": {
        "hidden_size": 4096,
        "n_routed_experts": 128,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "sliding_window": None,
    },
    "gemma4": {"text_config": GEMMA_4},
    "gemma4_text": GEMMA_4,
    "glm46v": {
        "text_config": {"model_type": "glm4v_moe_text", **GLM_4_5V},
        "vision_config": {"model_type": "glm4v_moe_vision"},
    },
    "glm4_moe": {"head_dim": 128, "attention_bias": True},
    "glm4v_moe": {"text_config": GLM_4_5V},
    "granitemoe": {
        "hidden_size": 1536,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "intermediate_size": 512,
        "num_local_experts": 40,
        "num_experts_per_tok": 8,
        "attention_multiplier": 0.015625,
        "embedding_multiplier": 12.0,
        "logits_scaling": 6.0,
        "residual_multiplier": 0.22,
    },
    "granitemoehybrid": {
        "hidden_size": 1536,
        "num_hidden_layers": 40,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "intermediate_size": 512,
        "shared_intermediate_size": 1024,
        "num_local_experts": 64,
        "num_experts_per_tok": 6,
        "attention_multiplier": 0.0078125,
        "embedding_multiplier": 12,
        "logits_scaling": 6,
        "residual_multiplier": 0.22,
        "mamba_n_heads": 48,
        "mamba_d_head": 64,
        "mamba_d_state": 128,
        "position_embedding_type": "nope",
        "layer_types": ["full_attention" if i in (5, 15, 25, 35) else "linear_attention" for i in range(40)],
        "vocab_size": 100352,
    },
    "hunyuan_v1_moe": {
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
        "num_experts": 64,
        "moe_topk": [8] * 32,
        "vocab_size": 128167,
    },
    "inkling_mm_model": {"text_config": INKLING},
    "inkling_text": INKLING,
    "internvl": {"text_config": {"model_type": "qwen3_moe", **QWEN_3_30B}},
    "laguna": {"layer_types": (["full_attention"] + ["sliding_attention"] * 3) * 10},
    "lfm2_moe": {
        "num_hidden_layers": 24,
        "layer_types": ["conv", "conv", *(["full_attention", "conv", "conv", "conv"] * 5), "full_attention", "conv"],
    },
    "mellum": {"layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 7},
    "minimax": {
        "hidden_size": 6144,
        "intermediate_size": 9216,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "num_local_experts": 32,
        "layer_types": (["linear_attention"] * 7 + ["full_attention"]) * 10,
        "full_attn_alpha_factor": 3.5565588200778455,
        "linear_attn_alpha_factor": 3.5565588200778455,
        "mlp_alpha_factor": 3.5565588200778455,
    },
    "minimax_m3_vl": {"text_config": MINIMAX_M3},
    "minimax_m3_vl_text": MINIMAX_M3,
    "mistral3": {"text_config": {"model_type": "mistral4"}},
    "nemo_speechlm": {"text_config": NEMOTRON_3},
    "nemotron_h": NEMOTRON_3,
    "nemotron_h_omni": {"text_config": NEMOTRON_3},
    "qwen3_5_moe": {"text_config": MROPE},
    "qwen3_5_moe_text": MROPE,
    "qwen3_moe": {
        "hidden_size": 4096,
        "num_hidden_layers": 94,
        "num_attention_heads": 64,
        "head_dim": 128,
        "moe_intermediate_size": 1536,
        "norm_topk_prob": True,
    },
    "qwen3_omni_moe": {"thinker_config": {"text_config": QWEN_3_OMNI}},
    "qwen3_omni_moe_thinker": {"text_config": QWEN_3_OMNI},
    "qwen4_exp": {"text_config": QWEN_4, "eos_token_id": 1},
    "qwen4_exp_text": QWEN_4,
    "step3p5": STEP_3,
    "step3p7": {"text_config": STEP_3},
}


def make_wide_config(model_type: str) -> PreTrainedConfig:
    """Return the config of a native family at published widths."""
    register_model_type(model_type)
    return CONFIG_MAPPING[model_type](**WIDTHS.get(model_type, {}))
