"""DeepSeek-V3.2: DeepSeek-V3 with an indexer in each layer that chooses the keys to attend to."""

from __future__ import annotations

from typing import Any

from server.model.declarations import Declaration, LatentAttention, RopeKind, latent_scaling
from server.model.families.deepseek_v3 import layer


def declare(config: Any) -> Declaration:
    attention = LatentAttention(
        "self_attn",
        rope=RopeKind.INTERLEAVED,
        scaling=latent_scaling(config),
        takes_choice=True,
        index_rope=RopeKind.HALVES,
    )
    return Declaration(layers=[layer(config, attention, is_sparse=kind == "sparse") for kind in config.mlp_layer_types])
