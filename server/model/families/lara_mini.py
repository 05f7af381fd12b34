"""Lara Mini: gated delta nets, attention with a window or without positions, and Qwen3's experts with a shared one."""

from __future__ import annotations

from typing import Any

from server.model.declarations import Declaration, GatedDeltaNet, GroupedAttention, Layer, Mlp, RopeKind, head_scaling
from server.model.families.qwen3_moe import experts


def declare(config: Any) -> Declaration:
    scaling = head_scaling(config)
    mixers = {
        "linear_attention": GatedDeltaNet("linear_attn"),
        "sliding_attention": GroupedAttention("self_attn", scaling=scaling, window=config.sliding_window),
        "full_attention": GroupedAttention("self_attn", rope=RopeKind.NONE, scaling=scaling),
    }
    return Declaration(
        layers=[
            Layer(mixer=mixers[kind], experts=experts(config), mlp=Mlp(module="mlp.shared_expert"))
            for kind in config.layer_types
        ]
    )
