"""Mellum 2: Qwen3's experts, and attention with a window in some layers, which have other rotary positions."""

from __future__ import annotations

from typing import Any

from server.model.declarations import Declaration, GroupedAttention, Layer, Mlp, Rotary, head_scaling
from server.model.families.qwen3_moe import experts


def declare(config: Any) -> Declaration:
    rotary = [*dict.fromkeys(config.layer_types)]  # by the kind of layer, in the order of their first ones
    mixers = {
        kind: GroupedAttention(
            "self_attn",
            rotary=number,
            scaling=head_scaling(config),
            window=config.sliding_window if kind == "sliding_attention" else 0,
        )
        for number, kind in enumerate(rotary)
    }
    layers = [
        Layer(
            mixer=mixers[kind],
            experts=experts(config) if mlp == "sparse" else None,
            mlp=None if mlp == "sparse" else Mlp(),
        )
        for kind, mlp in zip(config.layer_types, config.mlp_layer_types, strict=True)
    ]
    return Declaration(layers=layers, rotary=[Rotary(arguments=[kind]) for kind in rotary])
