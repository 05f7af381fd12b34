"""Inkling: attention with biases by distance instead of rotary positions, convolutions, and shared experts."""

from __future__ import annotations

from typing import Any

from server.model.declarations import (
    Declaration,
    Experts,
    GroupedAttention,
    Layer,
    Mlp,
    QueryScale,
    RopeKind,
    Router,
    RouterKind,
)


def declare(config: Any) -> Declaration:
    unpadded = config.vocab_size if config.unpadded_vocab_size is None else config.unpadded_vocab_size
    return Declaration(
        layers=[
            layer(config, is_sliding=kind == "hybrid_sliding", is_sparse=mlp == "sparse")
            for kind, mlp in zip(config.layer_types, config.mlp_layer_types, strict=True)
        ],
        rotary=[],
        logits_scale=1 / config.logits_mup_width_multiplier,
        is_head_input_scaled=config.logits_mup_width_multiplier != 1,
        unused_logits=max(config.vocab_size - unpadded, 0),
    )


def layer(config: Any, *, is_sliding: bool, is_sparse: bool) -> Layer:
    is_scaled = not is_sliding and config.log_scaling_n_floor is not None
    attention = GroupedAttention(
        "self_attn",
        rope=RopeKind.NONE,
        scaling=1 / (config.swa_head_dim if is_sliding else config.head_dim),  # queries and keys have norms
        window=config.sliding_window_size if is_sliding else 0,
        query_scale=QueryScale.BY_LOGARITHM if is_scaled else None,
    )
    router = Router(
        correction="mlp.gate.e_score_correction_bias",
        kind=RouterKind.SIGMOID,
        top_k=config.num_experts_per_tok,
        scale=config.route_scale,
        num_shared=config.n_shared_experts,
        chooses=False,
    )
    return Layer(
        mixer=attention,
        experts=Experts(router=router, shared="mlp.shared_experts") if is_sparse else None,
        mlp=None if is_sparse else Mlp(),
        mixer_convolution="attn_sconv",
        output_convolution="mlp_sconv",
    )
