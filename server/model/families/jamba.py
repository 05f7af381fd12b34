"""Jamba 1.5 Mini and Large: Mamba layers, some of attention without positions, and experts in every second layer."""

from __future__ import annotations

from typing import Any

from server.model.declarations import (
    Declaration,
    Experts,
    GroupedAttention,
    Layer,
    Mamba1,
    Mlp,
    RopeKind,
    Router,
    RouterKind,
    head_scaling,
)


def declare(config: Any) -> Declaration:
    mixers = {
        "linear_attention": Mamba1("mamba"),
        "full_attention": GroupedAttention("self_attn", rope=RopeKind.NONE, scaling=head_scaling(config)),
    }
    router = Router(
        module="feed_forward.router",
        weight="feed_forward.router.weight",
        kind=RouterKind.SOFTMAX_FIRST,
        top_k=config.num_experts_per_tok,
        is_normalised=False,
    )
    experts = Experts(module="feed_forward.experts", router=router)
    layers = [
        Layer(
            mixer=mixers[kind],
            experts=experts if num_experts > 1 else None,
            mlp=None if num_experts > 1 else Mlp(module="feed_forward"),
            inner_norm="pre_ff_layernorm",
        )
        for kind, num_experts in zip(config.layer_types, config.layers_num_experts, strict=True)
    ]
    return Declaration(layers=layers, rotary=[])
