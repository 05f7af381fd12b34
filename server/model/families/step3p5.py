"""Step-3.5-Flash and Step-3.7: gated attention, in most layers with a window and more heads, and a shared expert."""

from __future__ import annotations

from typing import Any

from server.model.declarations import (
    Declaration,
    Experts,
    GateKind,
    GroupedAttention,
    Layer,
    Mlp,
    Rotary,
    Router,
    RouterKind,
)


def declare(config: Any) -> Declaration:
    rotary = [*dict.fromkeys(config.layer_types)]  # by the kind of layer, in the order of their first ones
    mixers = {
        kind: GroupedAttention(
            "self_attn",
            rotary=number,
            scaling=config.query_pre_attn_scalar**-0.5,
            window=config.sliding_window if kind == "sliding_attention" else 0,
            gate=GateKind.SIGMOID,
        )
        for number, kind in enumerate(rotary)
    }
    router = Router(
        correction="mlp.gate.e_score_correction_bias", kind=RouterKind.SIGMOID, top_k=config.num_experts_per_tok
    )
    experts = Experts(router=router, scale=config.moe_router_scaling_factor)
    layers = [
        Layer(
            mixer=mixers[kind],
            experts=experts if mlp == "sparse" else None,
            mlp=Mlp(module="mlp.shared_experts" if mlp == "sparse" else "mlp"),
        )
        for kind, mlp in zip(config.layer_types, config.mlp_layer_types, strict=True)
    ]
    return Declaration(layers=layers, rotary=[Rotary(arguments=[kind]) for kind in rotary])
