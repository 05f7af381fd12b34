"""Laguna: gated attention with a window in some layers, which have other rotary positions, and a shared expert."""

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
    head_scaling,
)


def declare(config: Any) -> Declaration:
    rotary = [*dict.fromkeys(config.layer_types)]  # by the kind of layer, in the order of their first ones
    mixers = {
        kind: GroupedAttention(
            "self_attn",
            rotary=number,
            scaling=head_scaling(config),
            window=config.sliding_window if kind == "sliding_attention" else 0,
            gate=GateKind.SOFTPLUS,
        )
        for number, kind in enumerate(rotary)
    }
    router = Router(
        correction="mlp.gate.e_score_correction_bias", kind=RouterKind.SIGMOID, top_k=config.num_experts_per_tok
    )
    experts = Experts(router=router, scale=config.moe_routed_scaling_factor)
    layers = [
        Layer(
            mixer=mixers[kind],
            experts=experts if mlp == "sparse" else None,
            mlp=Mlp(module="mlp.shared_experts" if mlp == "sparse" else "mlp"),
        )
        for kind, mlp in zip(config.layer_types, config.mlp_layer_types, strict=True)
    ]
    return Declaration(layers=layers, rotary=[Rotary(arguments=[kind]) for kind in rotary])
