"""MiMo-V2-Flash: attention with a window and sinks in most layers, and DeepSeek-V3's experts without a shared one."""

from __future__ import annotations

from typing import Any

from server.model.declarations import Declaration, Experts, GroupedAttention, Layer, Mlp, Rotary, head_scaling
from server.model.families.deepseek_v3 import router


def declare(config: Any) -> Declaration:
    rotary = [*dict.fromkeys(config.layer_types)]  # by the kind of layer, in the order of their first ones
    mixers = {
        kind: GroupedAttention(
            "self_attn",
            rotary=number,
            scaling=head_scaling(config),
            window=config.sliding_window if kind == "sliding_attention" else 0,
            sinks="sinks" if kind == "sliding_attention" else None,
        )
        for number, kind in enumerate(rotary)
    }
    experts = Experts(router=router(config))
    layers = [
        Layer(
            mixer=mixers[kind],
            experts=experts if mlp == "sparse" else None,
            mlp=None if mlp == "sparse" else Mlp(),
        )
        for kind, mlp in zip(config.layer_types, config.mlp_layer_types, strict=True)
    ]
    return Declaration(layers=layers, rotary=[Rotary(arguments=[kind]) for kind in rotary])
