"""Gemma 4 with experts: windows and full attention with positions of their own, and an MLP beside the experts."""

from __future__ import annotations

from typing import Any

from server.model.declarations import Declaration, Experts, GroupedAttention, Layer, Mlp, Rotary, Router, RouterKind
from server.model.declarations.gguf import (
    ATTENTION,
    DENSE,
    HEAD_NORMS,
    ROTATED_IN_PART,
    Architecture,
    GgufFile,
    Place,
    Values,
    decoder_values,
    expert_values,
    frequency_factors,
    linears,
    numbers_by_layer,
    one_of,
    read,
)


def declare(config: Any) -> Declaration:
    kinds = [*dict.fromkeys(config.layer_types)]
    layers = {kind: layer(config, kind, rotary) for rotary, kind in enumerate(kinds)}
    return Declaration(
        layers=[layers[kind] for kind in config.layer_types],
        rotary=[Rotary(arguments=[kind]) for kind in kinds],
        embedding_scale=config.hidden_size**0.5,
        is_scale_rounded=True,
    )


def layer(config: Any, kind: str, rotary: int) -> Layer:
    window = config.sliding_window if kind == "sliding_attention" else 0
    router = Router(module="router", weight=None, kind=RouterKind.SOFTMAX_FIRST, top_k=config.top_k_experts)
    return Layer(
        mixer=GroupedAttention("self_attn", rotary=rotary, scaling=1.0, window=window),
        experts=Experts(module="experts", router=router, norm="post_feedforward_layernorm_2"),
        mlp=Mlp(input_norm="pre_feedforward_layernorm", output_norm="post_feedforward_layernorm_1"),
        mixer_norm="post_attention_layernorm",
        inner_norm="pre_feedforward_layernorm_2",
        output_norm="post_feedforward_layernorm",
    )


UNROTATED = 1e29  # factors of frequencies above it belong to numbers that are not rotated
PLACES = {
    **ATTENTION,
    **HEAD_NORMS,
    **DENSE,
    **linears(
        {
            "attn_norm": "input_layernorm",
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
            "post_ffw_norm": "post_feedforward_layernorm",
            "post_ffw_norm_1": "post_feedforward_layernorm_1",
            "post_ffw_norm_2": "post_feedforward_layernorm_2",
            "ffn_gate_inp": "router.proj",
        },
        kinds=("weight",),
    ),
    "ffn_gate_inp.scale": Place("router.scale"),
    "ffn_down_exps.scale": Place("router.per_expert_scale"),
    "layer_output_scale.weight": Place("layer_scalar"),
}


def gguf_config(file: GgufFile) -> Values:
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


GGUF = Architecture(
    "gemma4",
    gguf_config,
    PLACES,
    keys={
        **ROTATED_IN_PART,
        **read("attention.key_length_swa", "attention.sliding_window", "attention.sliding_window_pattern"),
        **read("attention.shared_kv_layers", "embedding_length_per_layer_input", "final_logit_softcapping"),
        **read("rope.freq_base_swa"),
        "rope.scaling.factor": one_of(0.0, 1.0),
        "rope.scale_linear": one_of(0.0, 1.0),
    },
    experts="experts",
)
