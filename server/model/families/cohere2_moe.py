"""Command A with experts: attention and experts side by side, and no positions in layers without a window."""

from __future__ import annotations

from typing import Any

from server.model.declarations import (
    Declaration,
    Experts,
    GroupedAttention,
    Layer,
    Mlp,
    PairAngles,
    RopeKind,
    Rotary,
    Router,
    RouterKind,
    head_scaling,
)


def declare(config: Any) -> Declaration:
    return Declaration(
        layers=[
            layer(config, mixer, is_sparse=kind == "sparse")
            for mixer, kind in zip(config.layer_types, config.mlp_layer_types, strict=True)
        ],
        rotary=[Rotary(columns=PairAngles.EVERY_OTHER)],
        logits_scale=config.logit_scale,
    )


def layer(config: Any, kind: str, *, is_sparse: bool) -> Layer:
    window = config.sliding_window if kind == "sliding_attention" else 0
    is_rotary = window or (not is_sparse and config.prefix_dense_sliding_window_pattern == 1)
    attention = GroupedAttention(
        "self_attn",
        rope=RopeKind.INTERLEAVED if is_rotary else RopeKind.NONE,
        scaling=head_scaling(config),
        window=window,
    )
    if not is_sparse:
        return Layer(mixer=attention, mlp=Mlp(), inner_norm=None, is_parallel=True)
    has_shared = config.num_shared_experts > 0
    scale = 0.5 if has_shared and config.shared_expert_combination_strategy == "average" else 1.0
    return Layer(
        mixer=attention,
        experts=Experts(router=router(config), scale=scale),
        mlp=Mlp(module="mlp.shared_experts", scale=scale) if has_shared else None,
        inner_norm=None,
        is_parallel=True,
    )


def router(config: Any) -> Router:
    is_softmax = config.expert_selection_fn == "softmax"
    return Router(
        kind=RouterKind.SOFTMAX_FIRST if is_softmax else RouterKind.TOP_SIGMOID,
        top_k=config.num_experts_per_tok,
        is_normalised=is_softmax or config.norm_topk_prob,
    )
