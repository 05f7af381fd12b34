"""Aria: attention as in Llama, and experts of which each token takes a few besides the shared ones."""

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
    router = Router(
        module="mlp.router", weight="mlp.router.weight", kind=RouterKind.SOFTMAX_FIRST, top_k=config.moe_topk
    )
    layer = Layer(
        mixer=GroupedAttention("self_attn", scaling=head_scaling(config)),
        experts=Experts(router=router),
        mlp=Mlp(module="mlp.shared_experts"),
    )
    return Declaration(layers=[layer] * config.num_hidden_layers)
