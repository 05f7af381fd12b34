"""The text part of GLM-5-Next: Kimi delta attention, latent attention with an indexer, and several residual streams."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from server.model.declarations import Declaration, KimiDeltaAttention, LatentAttention, RopeKind
from server.model.families.deepseek_v3 import layer


def declare(config: Any) -> Declaration:
    scaling = (config.qk_nope_head_dim + config.qk_rope_head_dim) ** -0.5
    mixers = {
        "linear_attention": KimiDeltaAttention("self_attn"),
        "indexed_attention": LatentAttention("self_attn", rope=RopeKind.NONE, scaling=scaling, takes_choice=True),
    }
    return Declaration(
        layers=[
            replace(layer(config, mixers[mixer], is_sparse=kind == "sparse"), streams=["attn_hc", "ffn_hc"])
            for mixer, kind in zip(config.layer_types, config.mlp_layer_types, strict=True)
        ],
        rotary=[],
        num_streams=config.hc_mult,
    )
