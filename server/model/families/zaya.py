"""ZAYA: mixed heads, values of the token before, routers that carry rows from layer to layer or choose no expert."""

from __future__ import annotations

from typing import Any

from server.model.declarations import (
    Declaration,
    Experts,
    GroupedAttention,
    Layer,
    Rotary,
    Router,
    RouterKind,
    head_scaling,
)


def declare(config: Any) -> Declaration:
    kinds = [*dict.fromkeys(config.layer_types)]
    layers = {kind: layer(config, kind, number) for number, kind in enumerate(kinds)}
    return Declaration(
        layers=[layers[kind] for kind in config.layer_types],
        rotary=[Rotary(arguments=[kind]) for kind in kinds],
    )


def layer(config: Any, kind: str, rotary: int) -> Layer:
    attention = GroupedAttention(
        "self_attn",
        rotary=rotary,
        scaling=head_scaling(config),
        window=config.sliding_window if kind == "hybrid_sliding" else 0,
    )
    router = Router(
        weight="mlp.gate.router_mlp.out_proj.weight",
        correction="mlp.gate.balancing_biases",
        kind=RouterKind.SOFTMAX_FIRST,
        top_k=config.num_experts_per_tok,
        is_normalised=False,
        num_skips=1,
        has_mlp=True,
        chooses=False,
    )
    return Layer(
        mixer=attention,
        experts=Experts(router=router),
        mixer_residual_gate="post_attention_residual_scale",
        inner_residual_gate="post_mlp_residual_scale",
    )
