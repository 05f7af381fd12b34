"""Qwen1.5-MoE-A2.7B and Qwen2-57B-A14B: experts, and a shared one with a gate of its own."""

from __future__ import annotations

from typing import Any

from server.model.blocks.declaration import MixerDeclaration
from server.model.declarations import Declaration, GroupedAttention, Layer, Mlp, head_scaling
from server.model.declarations.gguf import (
    GROUPED,
    NORMS,
    SHARED_GATE,
    Architecture,
    GgufFile,
    Values,
    decoder_values,
    expert_values,
    num_outputs,
    shared_linears,
)
from server.model.families.qwen3_moe import experts, is_sparse


def declare(config: Any) -> Declaration:
    windows = {"sliding_attention": config.sliding_window, "full_attention": 0}
    return Declaration(
        layers=[
            layer(
                config,
                GroupedAttention("self_attn", scaling=head_scaling(config), window=windows[kind]),
                is_sparse=is_sparse(config, index),
            )
            for index, kind in enumerate(config.layer_types)
        ]
    )


def layer(config: Any, mixer: MixerDeclaration, *, is_sparse: bool) -> Layer:
    """Return a layer with an MLP, or with experts and a weighted MLP that every token goes to."""
    if not is_sparse:
        return Layer(mixer=mixer, mlp=Mlp())
    return Layer(mixer=mixer, experts=experts(config), mlp=shared_expert())


def shared_expert() -> Mlp:
    return Mlp(module="mlp.shared_expert", weighting="mlp.shared_expert_gate")


PLACES = {**NORMS, **GROUPED, **shared_linears("mlp.shared_expert"), **SHARED_GATE}


def gguf_config(file: GgufFile) -> Values:
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


GGUF = Architecture("qwen2moe", gguf_config, PLACES)
