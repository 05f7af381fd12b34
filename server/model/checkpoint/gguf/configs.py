"""Configs of transformers, made from the metadata of GGUF files: one function for each architecture.

The keys are those of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and of llama.cpp's ``gguf-py``.
"""

from __future__ import annotations

from server.model.checkpoint.gguf.config_values import (
    SIGMOID,
    Values,
    decoder_values,
    expert_values,
    frequency_factors,
    gating,
    given_factors,
    num_outputs,
    numbers_by_layer,
    partly_rotated,
)
from server.model.checkpoint.gguf.gguf_file import GgufFile

LOG_MULTIPLIER = 0.1  # of yarn: llama.cpp stores this times mscale_all_dim
MAVERICK_EXPERTS = 128  # the Llama 4 with so many has no norms of queries and keys (llama4.cpp of llama.cpp)
UNROTATED = 1e29  # factors of frequencies above it belong to numbers that are not rotated


def qwen2_moe(file: GgufFile) -> Values:
    """``qwen2moe``: grouped-query attention with biases, a shared expert with a gate."""
    return (
        decoder_values(file)
        | expert_values(file)
        | {
            "model_type": "qwen2_moe",
            "shared_expert_intermediate_size": file.integer("expert_shared_feed_forward_length", 0)
            or num_outputs(file, "ffn_gate_shexp"),
            "norm_topk_prob": bool(file.value("expert_weights_norm", False)),
            "qkv_bias": True,
        }
    )


def qwen3_moe(file: GgufFile) -> Values:
    """``qwen3moe``; files do not say that the weights of chosen experts are normalised, which they always are."""
    return decoder_values(file) | expert_values(file) | {"model_type": "qwen3_moe", "norm_topk_prob": True}


def olmoe(file: GgufFile) -> Values:
    """``olmoe``: norms over all queries and all keys."""
    experts = expert_values(file)
    return decoder_values(file) | {
        "model_type": "olmoe",
        "intermediate_size": experts["moe_intermediate_size"],
        "num_experts": experts["num_experts"],
        "num_experts_per_tok": experts["num_experts_per_tok"],
        "norm_topk_prob": bool(file.value("expert_weights_norm", False)),
    }


def mixtral(file: GgufFile) -> Values:
    """``llama`` with experts, which is Mixtral."""
    experts = expert_values(file)
    return decoder_values(file) | {
        "model_type": "mixtral",
        "intermediate_size": experts["moe_intermediate_size"],
        "num_local_experts": experts["num_experts"],
        "num_experts_per_tok": experts["num_experts_per_tok"],
        "sliding_window": file.integer("attention.sliding_window", 0) or None,
    }


def gpt_oss(file: GgufFile) -> Values:
    """``gpt-oss``: every second layer has a window, the first one has."""
    values, experts = decoder_values(file), expert_values(file)
    kinds = ("sliding_attention", "full_attention")
    return values | {
        "model_type": "gpt_oss",
        "intermediate_size": experts["moe_intermediate_size"],
        "num_local_experts": experts["num_experts"],
        "num_experts_per_tok": experts["num_experts_per_tok"],
        "sliding_window": file.integer("attention.sliding_window"),
        "layer_types": [kinds[layer % 2] for layer in range(values["num_hidden_layers"])],
        "attention_bias": True,
        "rope_parameters": values["rope_parameters"] | {"truncate": False},
    }


def deepseek(file: GgufFile) -> Values:
    """``deepseek2``: DeepSeek V2, V3, R1, Kimi K2 and GLM-4.7-Flash, whose experts are scored by softmax or sigmoid."""
    values, experts = decoder_values(file), expert_values(file)
    rope = file.integer("rope.dimension_count")
    is_v3 = gating(file) == SIGMOID
    latent = {
        "q_lora_rank": file.integer("attention.q_lora_rank", 0) or None,
        "kv_lora_rank": file.integer("attention.kv_lora_rank"),
        "qk_rope_head_dim": rope,
        "qk_nope_head_dim": file.integer("attention.key_length_mla", file.integer("attention.key_length")) - rope,
        "v_head_dim": file.integer("attention.value_length_mla", file.integer("attention.value_length")),
        "num_key_value_heads": values["num_attention_heads"],
        "rope_interleave": True,
    }
    scaling = values["rope_parameters"]
    if file.has("rope.scaling.yarn_log_multiplier"):
        mscale = file.number("rope.scaling.yarn_log_multiplier") / LOG_MULTIPLIER
        scaling = scaling | {"mscale": mscale, "mscale_all_dim": mscale}
    groups = file.integer("expert_group_count", 1)
    routing: Values = {
        "model_type": "deepseek_v3" if is_v3 else "deepseek_v2",
        "n_routed_experts": experts["num_experts"],
        "n_shared_experts": file.integer("expert_shared_count", 0) or None,
        "first_k_dense_replace": file.integer("leading_dense_block_count", 0),
        "routed_scaling_factor": file.number("expert_weights_scale", 1.0) or 1.0,
        "norm_topk_prob": bool(file.value("expert_weights_norm", False)),
        "n_group": groups,
        "topk_group": file.integer("expert_group_used_count", 1),
    }
    if not is_v3:
        routing["topk_method"] = "group_limited_greedy" if groups > 1 else "greedy"
    values.pop("head_dim")
    return values | experts | latent | routing | {"rope_parameters": scaling}


def glm4_moe(file: GgufFile) -> Values:
    """``glm4moe``: GLM-4.5 to 4.7."""
    values, experts = decoder_values(file), expert_values(file)
    return (
        values
        | experts
        | partly_rotated(file, values)
        | {
            "model_type": "glm4_moe",
            "n_routed_experts": experts["num_experts"],
            "n_shared_experts": file.integer("expert_shared_count", 1),
            "first_k_dense_replace": file.integer("leading_dense_block_count", 0),
            "routed_scaling_factor": file.number("expert_weights_scale", 1.0) or 1.0,
            "norm_topk_prob": bool(file.value("expert_weights_norm", True)),
            "n_group": file.integer("expert_group_count", 1),
            "topk_group": file.integer("expert_group_used_count", 1),
            "use_qk_norm": "blk.0.attn_q_norm.weight" in file.tensors,
            "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        }
    )


def gemma4(file: GgufFile) -> Values:
    """``gemma4`` with experts: most layers have a window, and other heads and rotary positions than the rest."""
    values, experts = decoder_values(file), expert_values(file)
    kinds = ("full_attention", "sliding_attention")
    windows = file.value("attention.sliding_window_pattern")
    heads = numbers_by_layer(file, "attention.head_count_kv", len(windows))
    local, complete = (
        [count for count, has_window in zip(heads, windows, strict=True) if has_window == kind] for kind in (1, 0)
    )
    factors = frequency_factors(file, "rope_freqs.weight") or [1.0]
    rotated = sum(factor < UNROTATED for factor in factors) / len(factors)
    theta = values["rope_parameters"]["rope_theta"]
    return values | {
        "model_type": "gemma4_text",
        "moe_intermediate_size": experts["moe_intermediate_size"],
        "num_experts": experts["num_experts"],
        "top_k_experts": experts["num_experts_per_tok"],
        "enable_moe_block": True,
        "layer_types": [kinds[bool(has_window)] for has_window in windows],
        "sliding_window": file.integer("attention.sliding_window"),
        "num_key_value_heads": max(local or complete),
        "num_global_key_value_heads": max(complete or local),
        "head_dim": file.integer("attention.key_length_swa"),
        "global_head_dim": file.integer("attention.key_length"),
        "attention_k_eq_v": any(f"blk.{layer}.attn_v.weight" not in file.tensors for layer in range(len(windows))),
        "hidden_size_per_layer_input": file.integer("embedding_length_per_layer_input", 0),
        "num_kv_shared_layers": file.integer("attention.shared_kv_layers", 0),
        "final_logit_softcapping": file.number("final_logit_softcapping", 0.0) or None,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": file.number("rope.freq_base_swa", theta)},
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": rotated, "rope_theta": theta},
        },
    }


def llama4(file: GgufFile) -> Values:
    """``llama4``: chunks and rotary positions in three of four layers; files do not tell what is the same in all."""
    values, experts = decoder_values(file), expert_values(file)
    return values | {
        "model_type": "llama4_text",
        "intermediate_size": experts["moe_intermediate_size"],
        "intermediate_size_mlp": values["intermediate_size"],
        "num_local_experts": experts["num_experts"],
        "num_experts_per_tok": experts["num_experts_per_tok"],
        "interleave_moe_layer_step": file.integer("interleave_moe_layer_step"),
        "use_qk_norm": experts["num_experts"] != MAVERICK_EXPERTS,
    }


def minimax_m2(file: GgufFile) -> Values:
    """``minimax-m2``: norms over all queries and all keys, experts scored by sigmoid."""
    values, experts = decoder_values(file), expert_values(file)
    return (
        values
        | partly_rotated(file, values)
        | {
            "model_type": "minimax_m2",
            "intermediate_size": experts["moe_intermediate_size"],
            "num_local_experts": experts["num_experts"],
            "num_experts_per_tok": experts["num_experts_per_tok"],
        }
    )


def ernie4_5_moe(file: GgufFile) -> Values:
    """``ernie4_5-moe``: experts chosen by corrected softmax scores, some of them shared."""
    experts = expert_values(file)
    return decoder_values(file) | {
        "model_type": "ernie4_5_moe",
        "moe_intermediate_size": experts["moe_intermediate_size"],
        "moe_num_experts": experts["num_experts"],
        "moe_k": experts["num_experts_per_tok"],
        "moe_num_shared_experts": file.integer("expert_shared_count", 0),
        "moe_layer_start_index": file.integer("leading_dense_block_count", 0),
        "moe_layer_interval": file.integer("interleave_moe_layer_step", 1),
    }


def granite_moe(file: GgufFile) -> Values:
    """``granitemoe``: Granite 3 and 4 without recurrent layers, with or without shared experts."""
    values, shared = decoder_values(file), file.integer("expert_shared_feed_forward_length", 0)
    kind = {"model_type": "granitemoeshared", "shared_intermediate_size": shared}
    return values | granite_values(file, values) | (kind if shared else {"model_type": "granitemoe"})


def granite_values(file: GgufFile, values: Values) -> Values:
    """The values that all of Granite's architectures have; llama.cpp takes a scale of 0 for none."""
    experts = expert_values(file)
    return {
        "intermediate_size": experts["moe_intermediate_size"],
        "num_local_experts": experts["num_experts"],
        "num_experts_per_tok": experts["num_experts_per_tok"],
        "attention_multiplier": file.number("attention.scale", 0.0) or max(values["head_dim"], 1) ** -0.5,
        "embedding_multiplier": file.number("embedding_scale", 1.0) or 1.0,
        "residual_multiplier": file.number("residual_scale", 1.0) or 1.0,
        "logits_scaling": file.number("logit_scale", 1.0) or 1.0,
    }


def phi_moe(file: GgufFile) -> Values:
    """``phimoe``: norms with biases, and rotary positions with factors for short and for long sequences."""
    values, experts = decoder_values(file), expert_values(file)
    short, long = (frequency_factors(file, f"rope_factors_{kind}.weight") for kind in ("short", "long"))
    if short is not None and long is not None:
        rope = given_factors(file, short, long)
        scale = rope.pop("attention_factor")
        values["rope_parameters"] |= rope | {"short_mscale": scale, "long_mscale": scale}
    return values | {
        "model_type": "phimoe",
        "intermediate_size": experts["moe_intermediate_size"],
        "num_local_experts": experts["num_experts"],
        "num_experts_per_tok": experts["num_experts_per_tok"],
        "sliding_window": file.integer("attention.sliding_window", 0) or None,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "lm_head_bias": "output.bias" in file.tensors,
    }


def dots1(file: GgufFile) -> Values:
    """``dots1``: experts scored by sigmoid in groups, some of them shared."""
    experts = expert_values(file)
    return (
        decoder_values(file)
        | experts
        | {
            "model_type": "dots1",
            "n_routed_experts": experts["num_experts"],
            "n_shared_experts": file.integer("expert_shared_count"),
            "first_k_dense_replace": file.integer("leading_dense_block_count", 0),
            "routed_scaling_factor": file.number("expert_weights_scale", 1.0) or 1.0,
            "norm_topk_prob": bool(file.value("expert_weights_norm", False)),
            "n_group": file.integer("expert_group_count", 1),
            "topk_group": file.integer("expert_group_used_count", 1),
            "sliding_window": None,
        }
    )


def hunyuan_moe(file: GgufFile) -> Values:
    """``hunyuan-moe``: norms of queries and keys after their rotation, and a shared expert as large as the others."""
    experts = expert_values(file)
    return decoder_values(file) | {
        "model_type": "hunyuan_v1_moe",
        "intermediate_size": experts["moe_intermediate_size"],
        "num_experts": experts["num_experts"],
        "moe_topk": experts["num_experts_per_tok"],
    }
