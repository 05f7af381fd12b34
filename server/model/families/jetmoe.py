"""JetMoE: experts make the queries and the output of attention, others are its MLP; a router chooses each of both."""

from __future__ import annotations

from typing import Any

from server.model.declarations import (
    Declaration,
    Experts,
    GroupedAttention,
    Layer,
    Router,
    RouterKind,
    head_scaling,
)


def declare(config: Any) -> Declaration:
    attention = GroupedAttention("self_attention", scaling=head_scaling(config))
    router = Router(
        module="mlp",
        weight="mlp.router.layer.weight",
        kind=RouterKind.SOFTMAX_FIRST,
        top_k=config.num_experts_per_tok,
        chooses=False,
    )
    return Declaration(layers=[Layer(mixer=attention, experts=Experts(router=router))] * config.num_hidden_layers)
