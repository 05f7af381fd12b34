"""Granite with windows: attention with sinks, whose layers may have rotary positions of different bases or none."""

from __future__ import annotations

from typing import Any

from server.model.declarations import Declaration, GroupedAttention, RopeKind, Rotary
from server.model.families.granitemoe import layer, model


def declare(config: Any) -> Declaration:
    bases = [*dict.fromkeys(theta for theta in config.layer_rope_theta if theta)]
    windows = {"sliding_attention": config.sliding_window, "full_attention": 0}
    layers = [
        layer(
            config,
            GroupedAttention(
                "self_attn",
                rope=RopeKind.HALVES if theta else RopeKind.NONE,
                rotary=bases.index(theta) if theta else 0,
                scaling=config.attention_multiplier,
                window=windows[kind],
                sinks="sinks",
            ),
            has_shared=config.shared_intermediate_size > 0,
        )
        for kind, theta in zip(config.layer_types, config.layer_rope_theta, strict=True)
    ]
    return model(config, layers, rotary=[Rotary(module=f"rotary_embs.{sorted(bases).index(base)}") for base in bases])
