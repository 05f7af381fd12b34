"""Other values of configs with which declarations are compared with twins, by family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

VARIATIONS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "afmoe": [
        {"mup_enabled": True, "num_dense_layers": 2, "attention_bias": True},
        {"layer_types": ["full_attention", "full_attention", "full_attention"]},
    ],
    "aria": [],
    "aria_text": [{"attention_bias": True, "moe_topk": 3}],
    "axk1": [
        {"n_group": 4, "topk_group": 2, "norm_topk_prob": False},
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "mscale": 1.0,
                "mscale_all_dim": 0.7,
                "original_max_position_embeddings": 64,
            },
            "rope_interleave": False,
        },
    ],
    "axk2": [
        {"n_group": None, "topk_group": None},
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "mscale": 1.0,
                "mscale_all_dim": 0.7,
                "original_max_position_embeddings": 64,
            },
            "mlp_layer_types": ["sparse", "sparse", "sparse"],
        },
    ],
    "bailing_hybrid": [
        {
            "norm_topk_prob": False,
            "q_lora_rank": None,
            "swiglu_limits": [0.0, 0.1, 0.2],
            "swiglu_limits_shared": [0.0, 0.0, 0.1],
        },
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "mscale": 1.0,
                "mscale_all_dim": 0.7,
                "original_max_position_embeddings": 64,
            },
            "layer_types": ["full_attention", "full_attention", "full_attention"],
        },
    ],
    "beam": [
        {"norm_topk_prob": False, "n_group": 1},
        {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    ],
    "cohere2_moe": [
        {"num_shared_experts": 0, "expert_selection_fn": "sigmoid"},
        {"expert_selection_fn": "sigmoid", "norm_topk_prob": False, "shared_expert_combination_strategy": "sum"},
        {"mlp_layer_types": ["sparse", "dense", "sparse"], "prefix_dense_intermediate_size": 24},
    ],
    "dbrx": [],
    "deepseek_ocr2": [
        {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
        {"mlp_layer_types": ["sparse", "sparse", "sparse"]},
    ],
    "deepseek_v2": [
        {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 16.0},
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "mscale": 1.0,
                "mscale_all_dim": 0.7,
                "original_max_position_embeddings": 64,
            },
            "q_lora_rank": None,
            "norm_topk_prob": True,
        },
    ],
    "deepseek_v3": [
        {"n_group": 4, "topk_group": 2, "norm_topk_prob": False, "first_k_dense_replace": 0},
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "mscale": 1.0,
                "mscale_all_dim": 0.7,
                "original_max_position_embeddings": 64,
            },
            "rope_interleave": False,
            "n_group": 1,
        },
    ],
    "deepseek_v32": [
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "mscale": 1.0,
                "mscale_all_dim": 0.7,
                "original_max_position_embeddings": 64,
            },
            "norm_topk_prob": False,
        },
        {"n_group": 1, "mlp_layer_types": ["sparse", "sparse", "sparse"]},
    ],
    "deepseek_v4": [
        {"scoring_func": "sigmoid"},
        {
            "layer_types": ["heavily_compressed_attention", "compressed_sparse_attention", "sliding_attention"],
            "mlp_layer_types": ["moe", "moe", "moe"],
        },
    ],
    "dots1": [
        {"layer_types": ["full_attention", "full_attention", "full_attention"], "sliding_window": None, "n_group": 1},
        {"norm_topk_prob": False},
    ],
    "dots3_note": [],
    "dots3_note_text": [{"n_group": 1, "norm_topk_prob": False}],
    "ernie4_5_moe": [{"moe_num_shared_experts": 0}, {"moe_layer_interval": 2, "moe_layer_end_index": 1}],
    "ernie4_5_vl_moe": [{"moe_num_shared_experts": 0}, {"mlp_layer_types": ["sparse", "sparse", "sparse"]}],
    "exaone_moe": [
        {"n_group": 1, "norm_topk_prob": False},
        {"layer_types": ["full_attention", "full_attention", "full_attention"]},
    ],
    "flex_olmo": [{"norm_topk_prob": True, "attention_bias": True}],
    "flint": [
        {"norm_topk_prob": False, "decoder_sparse_step": 2},
        {"mlp_only_layers": [], "layer_types": ["full_attention", "full_attention", "full_attention"]},
    ],
    "gemma4": [],
    "gemma4_text": [{"attention_k_eq_v": False}],
    "glm46v": [],
    "glm4_moe": [
        {"use_qk_norm": True, "n_group": 1, "first_k_dense_replace": 2},
        {"norm_topk_prob": False, "attention_bias": True},
    ],
    "glm4_moe_lite": [
        {"rope_interleave": False, "n_group": 1},
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "mscale": 1.0,
                "mscale_all_dim": 0.7,
                "original_max_position_embeddings": 64,
            },
            "q_lora_rank": None,
        },
    ],
    "glm4v_moe": [{"n_group": 1, "norm_topk_prob": False, "first_k_dense_replace": 0}],
    "glm5_next": [{"n_group": 1, "norm_topk_prob": False, "linear_lower_bound": None}],
    "glm_moe_dsa": [
        {
            "n_group": 1,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "mscale": 1.0,
                "mscale_all_dim": 0.7,
                "original_max_position_embeddings": 64,
            },
        },
        {"indexer_types": ["full", "full", "shared"], "norm_topk_prob": False},
    ],
    "gpt_oss": [
        {"layer_types": ["full_attention", "full_attention", "full_attention"], "attention_bias": False},
        {"num_experts_per_tok": 4},
    ],
    "granitemoe": [
        {
            "attention_multiplier": 0.125,
            "embedding_multiplier": 12.0,
            "logits_scaling": 6.0,
            "residual_multiplier": 0.22,
        }
    ],
    "granitemoe_swa": [
        {
            "attention_multiplier": 0.125,
            "embedding_multiplier": 12.0,
            "logits_scaling": 6.0,
            "residual_multiplier": 0.22,
        },
        {"layer_rope_theta": [10000.0, 0.0, 500000.0]},
        {"layer_rope_theta": [500000.0, 10000.0, 0.0]},
    ],
    "granitemoehybrid": [
        {
            "attention_multiplier": 0.125,
            "embedding_multiplier": 12.0,
            "logits_scaling": 6.0,
            "residual_multiplier": 0.22,
        },
        {"position_embedding_type": "rope"},
    ],
    "granitemoeshared": [
        {
            "attention_multiplier": 0.125,
            "embedding_multiplier": 12.0,
            "logits_scaling": 6.0,
            "residual_multiplier": 0.22,
        },
        {"shared_intermediate_size": 0},
    ],
    "hunyuan_v1_moe": [{"moe_topk": [1, 2, 3], "attention_bias": True}],
    "hy_v3": [{"mlp_layer_types": ["dense", "dense", "sparse"], "attention_bias": True}],
    "hy_v4": [
        {"n_group": 1, "norm_topk_prob": False},
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "mscale": 1.0,
                "mscale_all_dim": 0.7,
                "original_max_position_embeddings": 64,
            },
            "indexer_types": ["full", "shared", "shared"],
        },
    ],
    "hy_v4_vl": [{"n_group": 1, "norm_topk_prob": False, "mlp_layer_types": ["sparse", "sparse", "sparse"]}],
    "inkling2": [],
    "inkling2_text": [
        {"n_layers_per_attn_res_block": 1, "qk_l2_clip_threshold": 1.5, "rel_l2_clip_threshold": 0.7},
        {"n_layers_per_attn_res_block": 2, "layer_types": ["hybrid", "hybrid_sliding", "hybrid"]},
    ],
    "inkling_mm_model": [],
    "inkling_text": [
        {"log_scaling_n_floor": None, "unpadded_vocab_size": None},
        {"vocab_size": 900, "unpadded_vocab_size": 500},
        {"mlp_layer_types": ["sparse", "sparse", "sparse"], "layer_types": ["hybrid", "hybrid", "hybrid_sliding"]},
    ],
    "internvl": [],
    "jamba": [{"expert_layer_period": 1, "expert_layer_offset": 0}],
    "jetmoe": [{"num_experts_per_tok": 3, "activation_function": "gelu"}],
    "kimi_k25": [],
    "kimi_linear": [
        {"norm_topk_prob": False},
        {"n_group": 1, "topk_group": 1, "mlp_layer_types": ["sparse", "sparse", "sparse"]},
        {"layer_types": ["full_attention", "linear_attention", "linear_attention"]},
    ],
    "kolibri1": [{"norm_topk_prob": True, "layer_types": ["full_attention", "full_attention", "full_attention"]}],
    "laguna": [
        {"moe_routed_scaling_factor": 2.5},
        {"gating": "per-element", "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        {"mlp_layer_types": ["sparse", "sparse", "sparse"]},
    ],
    "lara_mini": [
        {"layer_types": ["linear_attention", "full_attention", "sliding_attention"], "norm_topk_prob": False}
    ],
    "lfm2_moe": [
        {"use_expert_bias": False, "num_dense_layers": 0},
        {"norm_topk_prob": False, "routed_scaling_factor": 2.5, "num_dense_layers": 1},
    ],
    "llama4": [],
    "llama4_text": [
        {"moe_layers": [0, 1, 2, 3], "num_experts_per_tok": 1},
        {"attn_temperature_tuning": False, "use_qk_norm": False},
    ],
    "longcat_flash": [
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "mscale": 1.0,
                "mscale_all_dim": 0.7,
                "original_max_position_embeddings": 64,
            }
        }
    ],
    "mellum": [
        {"norm_topk_prob": False},
        {"mlp_layer_types": ["dense", "sparse", "sparse"]},
        {"layer_types": ["full_attention", "full_attention", "full_attention"]},
    ],
    "mimo_v2_flash": [
        {"n_group": 1, "topk_group": 1, "norm_topk_prob": False},
        {"routed_scaling_factor": 2.5, "mlp_layer_types": ["sparse", "sparse", "sparse"]},
        {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]},
    ],
    "minicpm5_moe": [
        {"n_group": 1, "topk_group": 1, "norm_topk_prob": False},
        {"attention_bias": True, "mlp_layer_types": ["sparse", "sparse", "sparse"]},
    ],
    "minimax": [
        {"full_attn_alpha_factor": 1, "linear_attn_alpha_factor": 1, "mlp_alpha_factor": 1, "sliding_window": None},
        {"full_attn_beta_factor": 2.0, "linear_attn_beta_factor": 2.0, "mlp_beta_factor": 2.0},
    ],
    "minimax_m2": [],
    "minimax_m3_vl": [],
    "minimax_m3_vl_text": [
        {"mlp_layer_types": ["dense", "sparse", "sparse"]},
        {"layer_types": ["full_attention", "full_attention", "full_attention"], "routed_scaling_factor": 1.0},
    ],
    "mistral3": [],
    "mistral4": [
        {"norm_topk_prob": False, "n_group": 1, "topk_group": 1},
        {"first_k_dense_replace": 0, "rope_interleave": False},
    ],
    "mistral_large4": [
        {"no_rope_layers": [1, 0, 1]},
        {"indexer_types": ["full", "shared", "full"], "mlp_layer_types": ["sparse", "sparse", "sparse"]},
    ],
    "mixtral": [{"sliding_window": None}],
    "muse_spark": [
        {"mlp_layer_types": ["dense", "sparse", "dense"], "layer_rope_theta": [0, 10000.0, 0]},
        {"moe_hidden_size": 56, "routed_scaling_factor": 2.5, "qk_scale_factor": 1.25},
        {"moe_hidden_size": 32, "residual_gate_temperature": 2.0, "output_multiplier": 1.0, "post_norm_eps": 1e-2},
    ],
    "nemo_speechlm": [],
    "nemotron_h": [
        {"norm_topk_prob": False, "n_group": 1, "topk_group": 1},
        {"layers_block_type": ["linear_attention", "mlp", "full_attention", "moe"]},
        {"moe_latent_size": 16, "routed_scaling_factor": 2.5},
    ],
    "nemotron_h_omni": [],
    "olmoe": [{"norm_topk_prob": True, "clip_qkv": 0.5}],
    "param2moe": [
        {"use_qk_norm": False, "n_group": 1, "first_k_dense_replace": 2},
        {"norm_topk_prob": False, "attention_bias": True, "partial_rotary_factor": 0.5},
    ],
    "phimoe": [{"sliding_window": None, "router_jitter_noise": 0.05, "attention_bias": True}],
    "qwen2_moe": [
        {"layer_types": ["full_attention", "full_attention", "full_attention"], "norm_topk_prob": True},
        {"decoder_sparse_step": 2},
        {"mlp_only_layers": [1], "qkv_bias": False},
    ],
    "qwen3_5_moe": [],
    "qwen3_5_moe_text": [{"layer_types": ["full_attention", "linear_attention", "linear_attention"]}],
    "qwen3_moe": [
        {"norm_topk_prob": True},
        {"sliding_window": 6, "mlp_only_layers": [0]},
        {
            "decoder_sparse_step": 2,
            "attention_bias": True,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "mscale": 1.0,
                "mscale_all_dim": 0.7,
                "original_max_position_embeddings": 64,
            },
        },
    ],
    "qwen3_next": [
        {"norm_topk_prob": False, "mlp_only_layers": [1]},
        {"decoder_sparse_step": 2, "layer_types": ["full_attention", "full_attention", "full_attention"]},
    ],
    "qwen3_omni_moe": [],
    "qwen3_omni_moe_thinker": [{"norm_topk_prob": False, "mlp_only_layers": [0]}],
    "qwen3_vl_moe": [{"mlp_only_layers": [1]}, {"decoder_sparse_step": 2}],
    "qwen4_exp": [],
    "qwen4_exp_text": [{"norm_topk_prob": False, "ple_layer_ids": [], "hc_count": 2}],
    "sarvam_mla": [
        {"n_group": 1, "topk_group": 1, "norm_topk_prob": False},
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "mscale": 1.0,
                "mscale_all_dim": 0.7,
                "original_max_position_embeddings": 64,
            },
            "first_k_dense_replace": 2,
        },
    ],
    "sarvam_moe": [
        {"n_group": 1, "topk_group": 1, "norm_topk_prob": False},
        {"attention_bias": True, "first_k_dense_replace": 0},
    ],
    "solar_open": [
        {
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": False,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "mscale": 1.0,
                "mscale_all_dim": 0.7,
                "original_max_position_embeddings": 64,
            },
        }
    ],
    "step3p5": [
        {
            "moe_router_scaling_factor": 3.0,
            "query_pre_attn_scalar": 16,
            "swiglu_limits": [0.0, 0.1, 0.2],
            "swiglu_limits_shared": [0.0, 0.0, 0.1],
        },
        {
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "mlp_layer_types": ["dense", "dense", "sparse"],
        },
    ],
    "step3p7": [],
    "zaya": [
        {
            "layer_types": ["hybrid", "hybrid_sliding", "hybrid"],
            "router_hidden_size": 24,
            "cca_time0": 3,
            "cca_time1": 4,
            "attention_bias": True,
            "lm_head_bias": True,
        },
        {"layer_types": ["hybrid_sliding"] * 3, "num_key_value_heads": 1, "cca_time0": 1},
    ],
}
