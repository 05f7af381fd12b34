"""Kimi-Linear-48B-A3B: Kimi delta attention, some latent attention without positions, and DeepSeek-V3's experts."""

from __future__ import annotations

from typing import Any

from server.model.declarations import Declaration, KimiDeltaAttention, LatentAttention, RopeKind
from server.model.families.deepseek_v3 import layer


def declare(config: Any) -> Declaration:
    scaling = (config.qk_nope_head_dim + config.qk_rope_head_dim) ** -0.5
    mixers = {
        "linear_attention": KimiDeltaAttention("self_attn"),
        "full_attention": LatentAttention("self_attn", rope=RopeKind.NONE, scaling=scaling),
    }
    return Declaration(
        layers=[
            layer(config, mixers[kind], is_sparse=mlp == "sparse")
            for kind, mlp in zip(config.layer_types, config.mlp_layer_types, strict=True)
        ],
        rotary=[],
    )
