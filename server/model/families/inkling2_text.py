"""Inkling 2: attention with biases by distance and sinks of each token, to whose blocks of layers all parts attend."""

from __future__ import annotations

from typing import Any

from server.model.declarations import (
    Declaration,
    Experts,
    GateKind,
    GroupedAttention,
    Layer,
    QueryScale,
    RopeKind,
    Router,
    RouterKind,
)


def declare(config: Any) -> Declaration:
    num_blocks = -(-config.num_hidden_layers // config.n_layers_per_attn_res_block)
    return Declaration(
        layers=[layer(config, index, kind) for index, kind in enumerate(config.layer_types)],
        rotary=[],
        num_streams=num_blocks + 1,
    )


def layer(config: Any, index: int, kind: str) -> Layer:
    is_sliding = kind == "hybrid_sliding"
    attention = GroupedAttention(
        "self_attn",
        rope=RopeKind.NONE,
        scaling=(config.swa_head_dim if is_sliding else config.head_dim) ** -0.5,
        window=config.sliding_window_size if is_sliding else 0,
        gate=GateKind.SIGMOID,
        query_scale=None if is_sliding else QueryScale.BY_LOGARITHM,
        takes_other_rows=not is_sliding,
    )
    router = Router(
        correction="mlp.gate.e_score_correction_bias",
        kind=RouterKind.SIGMOID,
        top_k=config.num_experts_per_tok,
        scale=config.route_scale,
    )
    return Layer(
        mixer=attention,
        experts=Experts(router=router),
        input_norm="input_layernorm" if is_sliding else "q_input_layernorm",
        key_input_norm=None if is_sliding else "k_input_layernorm",
        value_input_norm=None if is_sliding else "v_input_layernorm",
        mixer_convolution="post_attention_convolution",
        output_convolution="post_mlp_convolution",
        starts_block=index % config.n_layers_per_attn_res_block == 0,
        streams=["attention_input" if index else "", "mlp_input"],
    )
