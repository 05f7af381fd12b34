"""EXAONE MoE (K-EXAONE): windows with rotary positions, full attention without them, and DeepSeek-V3's experts."""

from __future__ import annotations

from typing import Any

from server.model.declarations import Declaration, GroupedAttention, RopeKind, head_scaling
from server.model.families.deepseek_v3 import layer


def declare(config: Any) -> Declaration:
    scaling = head_scaling(config)
    full_rope = RopeKind.HALVES if config.sliding_window is None else RopeKind.NONE
    mixers = {
        "sliding_attention": GroupedAttention("self_attn", scaling=scaling, window=config.sliding_window),
        "full_attention": GroupedAttention("self_attn", rope=full_rope, scaling=scaling),
    }
    return Declaration(
        layers=[
            layer(config, mixers[mixer], is_sparse=kind == "sparse")
            for mixer, kind in zip(config.layer_types, config.mlp_layer_types, strict=True)
        ]
    )
