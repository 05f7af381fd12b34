"""Kolibri: attention with a window in most layers and without positions in the others, and norms of results."""

from __future__ import annotations

from typing import Any

from server.model.declarations import (
    Declaration,
    Experts,
    GroupedAttention,
    Layer,
    Mlp,
    RopeKind,
    Router,
    RouterKind,
    head_scaling,
)


def declare(config: Any) -> Declaration:
    scaling = head_scaling(config)
    mixers = {
        "sliding_attention": GroupedAttention("self_attn", scaling=scaling, window=config.sliding_window),
        "full_attention": GroupedAttention("self_attn", rope=RopeKind.NONE, scaling=scaling),
    }
    router = Router(
        correction="mlp.gate.e_score_correction_bias",  # of logits
        kind=RouterKind.TOP_SIGMOID,
        top_k=config.num_experts_per_tok,
        is_normalised=config.norm_topk_prob,
    )
    layers = [
        Layer(
            mixer=mixers[kind],
            experts=Experts(router=router),
            mlp=Mlp(module="mlp.shared_experts"),
            mixer_norm="post_self_attn_layernorm",
            output_norm="post_mlp_layernorm",
        )
        for kind in config.layer_types
    ]
    return Declaration(layers=layers)
