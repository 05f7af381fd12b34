"""Hunyuan 3: attention with norms of heads, and experts that corrected sigmoids choose."""

from __future__ import annotations

from typing import Any

from server.model.declarations import (
    Declaration,
    Experts,
    GroupedAttention,
    Layer,
    Mlp,
    Router,
    RouterKind,
    head_scaling,
)


def declare(config: Any) -> Declaration:
    attention = GroupedAttention("self_attn", scaling=head_scaling(config))
    router = Router(
        correction="mlp.e_score_correction_bias",
        kind=RouterKind.SIGMOID,
        top_k=config.num_experts_per_tok,
        scale=config.router_scaling_factor,
    )
    kinds = {
        "dense": Layer(mixer=attention, mlp=Mlp()),
        "sparse": Layer(mixer=attention, experts=Experts(router=router), mlp=Mlp(module="mlp.shared_experts")),
    }
    return Declaration(layers=[kinds[kind] for kind in config.mlp_layer_types])
