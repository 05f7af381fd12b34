"""Muse Spark: gated attention with a window, gates of the residual stream, and narrow experts with normed results."""

from __future__ import annotations

from typing import Any

from server.model.declarations import (
    Declaration,
    Experts,
    GateKind,
    GroupedAttention,
    Layer,
    Mlp,
    RopeKind,
    Router,
    RouterKind,
    head_scaling,
)


def declare(config: Any) -> Declaration:
    return Declaration(
        layers=[
            layer(config, kind, has_positions=bool(theta), is_sparse=mlp == "sparse")
            for kind, theta, mlp in zip(
                config.layer_types, config.layer_rope_theta, config.mlp_layer_types, strict=True
            )
        ],
        logits_scale=config.output_multiplier,
    )


def layer(config: Any, kind: str, *, has_positions: bool, is_sparse: bool) -> Layer:
    attention = GroupedAttention(
        "self_attn",
        rope=RopeKind.HALVES if has_positions else RopeKind.NONE,
        scaling=head_scaling(config),
        window=config.sliding_window if kind == "sliding_attention" else 0,
        gate=GateKind.SIGMOID,
    )
    router = Router(
        correction="mlp.gate.e_score_correction_bias",
        kind=RouterKind.SIGMOID,
        top_k=config.num_experts_per_tok,
        logits_scale=config.output_multiplier,
        scale=config.routed_scaling_factor,
    )
    experts = Experts(
        router=router,
        input_projection="mlp.pre_expert_proj",
        projected_norm="mlp.pre_expert_norm",
        output_projection="mlp.post_expert_proj",
    )
    return Layer(
        mixer=attention,
        experts=experts if is_sparse else None,
        mlp=None if is_sparse else Mlp(),
        mixer_norm="post_attention_layernorm",
        inner_norm="pre_feedforward_layernorm",
        output_norm="post_feedforward_layernorm",
        mixer_residual_gate="post_attention_residual_gate",
        inner_residual_gate="post_feedforward_residual_gate",
    )
