"""GLM-5: DeepSeek-V3.2, of which some layers take the keys that an indexer of a layer before chose."""

from __future__ import annotations

from typing import Any

from server.model.declarations import Declaration, LatentAttention, RopeKind, latent_scaling
from server.model.families.deepseek_v3 import layer


def declare(config: Any) -> Declaration:
    return Declaration(
        layers=[
            layer(config, attention(config, indexer), is_sparse=kind == "sparse")
            for indexer, kind in zip(config.indexer_types, config.mlp_layer_types, strict=True)
        ]
    )


def attention(config: Any, indexer: str) -> LatentAttention:
    return LatentAttention(
        "self_attn",
        rope=RopeKind.INTERLEAVED,
        scaling=latent_scaling(config),
        takes_choice=True,
        index_rope=RopeKind.NONE if indexer == "shared" else RopeKind.INTERLEAVED,
    )
