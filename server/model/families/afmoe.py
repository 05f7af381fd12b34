"""AFMoE (Trinity): gated attention with a window in most layers, and without positions in the others; four norms."""

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
            layer(config, kind, is_sparse=index >= config.num_dense_layers)
            for index, kind in enumerate(config.layer_types)
        ],
        embedding_scale=config.hidden_size**0.5 if config.mup_enabled else 1.0,
    )


def layer(config: Any, kind: str, *, is_sparse: bool) -> Layer:
    is_sliding = kind == "sliding_attention"
    attention = GroupedAttention(
        "self_attn",
        rope=RopeKind.HALVES if is_sliding else RopeKind.NONE,
        scaling=head_scaling(config),
        window=config.sliding_window if is_sliding else 0,
        gate=GateKind.SIGMOID,
    )
    router = Router(
        module="mlp",
        weight="mlp.router.gate.weight",
        correction="mlp.expert_bias",
        kind=RouterKind.SIGMOID,
        top_k=config.num_experts_per_tok,
        scale=config.route_scale,
        chooses=False,
    )
    return Layer(
        mixer=attention,
        experts=Experts(router=router) if is_sparse else None,
        mlp=Mlp(module="mlp.shared_experts" if is_sparse else "mlp"),
        mixer_norm="post_attention_layernorm",
        inner_norm="pre_mlp_layernorm",
        output_norm="post_mlp_layernorm",
    )
