"""Ling 2.5 and Ring 2.5: Kimi delta attention with some layers of latent attention, and DeepSeek-V3's experts."""

from __future__ import annotations

from typing import Any

from server.model.declarations import Declaration, KimiDeltaAttention, LatentAttention, RopeKind, latent_scaling
from server.model.families.deepseek_v3 import layer


def declare(config: Any) -> Declaration:
    mixers = {
        "linear_attention": KimiDeltaAttention("self_attn"),
        "full_attention": LatentAttention("self_attn", rope=RopeKind.INTERLEAVED, scaling=latent_scaling(config)),
    }
    return Declaration(
        layers=[
            layer(config, mixers[mixer], is_sparse=kind == "sparse")
            for mixer, kind in zip(config.layer_types, config.mlp_layer_types, strict=True)
        ]
    )
