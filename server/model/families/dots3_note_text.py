"""The text part of dots.note: latent attention with an indexer or a window, and DeepSeek-V3's experts."""

from __future__ import annotations

from typing import Any

from server.model.declarations import Declaration, LatentAttention, RopeKind, Rotary
from server.model.families.deepseek_v3 import layer


def declare(config: Any) -> Declaration:
    kinds = [*dict.fromkeys(config.layer_types)]
    mixers = {kind: attention(config.per_layer_config[kind], kind, rotary) for rotary, kind in enumerate(kinds)}
    return Declaration(
        layers=[
            layer(config, mixers[mixer], is_sparse=kind == "sparse")
            for mixer, kind in zip(config.layer_types, config.mlp_layer_types, strict=True)
        ],
        rotary=[Rotary(arguments=[kind]) for kind in kinds],
    )


def attention(config: Any, kind: str, rotary: int) -> LatentAttention:
    """Return the attention of a kind of layers, which has sizes of its own.

    Args:
        config: of this kind.
        rotary: number of its rotary positions.
    """
    has_indexer = kind == "indexed_attention"
    return LatentAttention(
        "self_attn",
        rope=RopeKind.INTERLEAVED,
        rotary=rotary,
        scaling=(config.qk_nope_head_dim + config.qk_rope_head_dim) ** -0.5,
        window=config.sliding_window if kind == "sliding_attention" else 0,
        takes_choice=has_indexer,
        index_rope=RopeKind.INTERLEAVED if has_indexer else RopeKind.NONE,
    )
