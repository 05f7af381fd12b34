"""MiniMax-M3: attention to blocks of keys that an indexer chooses in most layers, and a shared expert."""

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
        "full_attention": GroupedAttention("self_attn", scaling=scaling),
        "minimax_m3_sparse": GroupedAttention("self_attn", scaling=scaling, index_rope=RopeKind.HALVES),
    }
    router = Router(
        correction="mlp.gate.e_score_correction_bias", kind=RouterKind.SIGMOID, top_k=config.num_experts_per_tok
    )
    experts = Experts(router=router, scale=config.routed_scaling_factor)
    layers = [
        Layer(
            mixer=mixers[kind],
            experts=experts if mlp == "sparse" else None,
            mlp=Mlp(module="mlp.shared_experts" if mlp == "sparse" else "mlp"),
        )
        for kind, mlp in zip(config.layer_types, config.mlp_layer_types, strict=True)
    ]
    return Declaration(layers=layers)
