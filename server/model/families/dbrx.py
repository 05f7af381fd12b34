"""DBRX: grouped-query attention with clipped projections, and experts that a softmax chooses."""

from __future__ import annotations

from typing import Any

from server.model.declarations import Declaration, Experts, GroupedAttention, Layer, Router, RouterKind, head_scaling


def declare(config: Any) -> Declaration:
    router = Router(
        module="ffn.router.layer",
        weight="ffn.router.layer.weight",
        kind=RouterKind.SOFTMAX_FIRST,
        top_k=config.ffn_config.moe_top_k,
        is_normalised=config.ffn_config.moe_normalize_expert_weights is not None,
        chooses=False,
    )
    layer = Layer(
        mixer=GroupedAttention("norm_attn_norm.attn", scaling=head_scaling(config)),
        experts=Experts(module="ffn.experts", router=router),
        input_norm="norm_attn_norm.norm_1",
        inner_norm="norm_attn_norm.norm_2",
    )
    return Declaration(layers=[layer] * config.num_hidden_layers)
