"""Hunyuan 4: latent attention with sinks and shared choices of keys, DeepSeek-V3's experts, and residual streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from server.model.declarations import Declaration, LatentAttention, RopeKind, Rotary, latent_scaling
from server.model.families.deepseek_v3 import layer


def declare(config: Any, rotary: Sequence[Rotary] = (Rotary(),)) -> Declaration:
    """Return the model; its vision variant has positions of more axes."""
    return Declaration(
        layers=[
            replace(
                layer(config, attention(config, has_indexer=indexer != "shared"), is_sparse=kind == "sparse"),
                streams=["attn_hc", "ffn_hc"],
            )
            for indexer, kind in zip(config.indexer_types, config.mlp_layer_types, strict=True)
        ],
        rotary=rotary,
        num_streams=config.hc_mult,
    )


def attention(config: Any, *, has_indexer: bool) -> LatentAttention:
    return LatentAttention(
        "self_attn",
        rope=RopeKind.INTERLEAVED,
        scaling=latent_scaling(config),
        sinks="sinks",
        takes_choice=True,
        index_rope=RopeKind.INTERLEAVED if has_indexer else RopeKind.NONE,
        index_rotates_last=has_indexer,
    )
