"""Mistral Large 4: latent attention to keys that an indexer chooses, without positions in some layers."""

from __future__ import annotations

from typing import Any

from server.model.declarations import Declaration, LatentAttention, RopeKind, latent_scaling
from server.model.families.mistral4 import layer


def declare(config: Any) -> Declaration:
    return Declaration(
        layers=[
            layer(
                config,
                attention(config, has_positions=bool(has_positions), has_indexer=indexer == "full"),
                is_sparse=mlp == "sparse",
                is_normalised=True,
            )
            for has_positions, indexer, mlp in zip(
                config.no_rope_layers, config.indexer_types, config.mlp_layer_types, strict=True
            )
        ]
    )


def attention(config: Any, *, has_positions: bool, has_indexer: bool) -> LatentAttention:
    rope = RopeKind.INTERLEAVED if has_positions else RopeKind.NONE
    return LatentAttention(
        "self_attn",
        rope=rope,
        scaling=latent_scaling(config),
        takes_choice=True,
        index_rope=rope if has_indexer else RopeKind.NONE,
    )
