"""Flint: attention with sinks, whose layers have a window and rotary positions or neither, and experts by sigmoids."""

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
    router = Router(kind=RouterKind.TOP_SIGMOID, top_k=config.num_experts_per_tok, is_normalised=config.norm_topk_prob)
    return Declaration(
        layers=[
            Layer(
                mixer=attention(config, kind),
                experts=Experts(router=router) if is_sparse(config, index) else None,
                mlp=Mlp(module="mlp.shared_expert" if is_sparse(config, index) else "mlp"),
            )
            for index, kind in enumerate(config.layer_types)
        ]
    )


def attention(config: Any, kind: str) -> GroupedAttention:
    window = config.sliding_window if kind == "sliding_attention" else 0
    return GroupedAttention(
        "self_attn",
        rope=RopeKind.HALVES if window else RopeKind.NONE,
        scaling=head_scaling(config),
        window=window,
        sinks="sinks",
    )


def is_sparse(config: Any, index: int) -> bool:
    return (
        index not in config.mlp_only_layers and config.num_experts > 0 and (index + 1) % config.decoder_sparse_step == 0
    )
