"""FlexOlmo: OLMo 2's attention with norms after each part, and experts that a softmax chooses."""

from __future__ import annotations

from typing import Any

from server.model.declarations import Declaration, Experts, GroupedAttention, Layer, Router, RouterKind, head_scaling


def declare(config: Any) -> Declaration:
    router = Router(
        kind=RouterKind.SOFTMAX_FIRST, top_k=config.num_experts_per_tok, is_normalised=config.norm_topk_prob
    )
    layer = Layer(
        mixer=GroupedAttention("self_attn", scaling=head_scaling(config)),
        experts=Experts(router=router),
        input_norm=None,
        mixer_norm="post_attention_layernorm",
        inner_norm=None,
        output_norm="post_feedforward_layernorm",
    )
    return Declaration(layers=[layer] * config.num_hidden_layers)
