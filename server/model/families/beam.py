"""Beam: gated attention, of which layers without rotary positions scale queries by position, and four norms a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from server.model.declarations import (
    Declaration,
    Experts,
    GateKind,
    GroupedAttention,
    Layer,
    Mlp,
    QueryScale,
    RopeKind,
    Rotary,
    head_scaling,
)
from server.model.families.deepseek_v3 import router


def declare(config: Any) -> Declaration:
    rotary = [kind for kind in dict.fromkeys(config.layer_types) if config.rope_parameters[kind] is not None]
    # a norm of the results follows, which undoes `routed_scaling_factor`
    experts = Experts(router=replace(router(config), scale=1.0))
    layers = [
        Layer(
            mixer=attention(config, mixer, rotary),
            experts=experts if kind == "sparse" else None,
            mlp=None if kind == "sparse" else Mlp(),
            mixer_norm="post_attention_layernorm",
            inner_norm="pre_feedforward_layernorm",
            output_norm="post_feedforward_layernorm",
        )
        for mixer, kind in zip(config.layer_types, config.mlp_layer_types, strict=True)
    ]
    return Declaration(layers=layers, rotary=[Rotary(arguments=[kind]) for kind in rotary])


def attention(config: Any, kind: str, rotary: Sequence[str]) -> GroupedAttention:
    is_rotary = kind in rotary
    return GroupedAttention(
        "self_attn",
        rope=RopeKind.HALVES if is_rotary else RopeKind.NONE,
        rotary=rotary.index(kind) if is_rotary else 0,
        scaling=head_scaling(config),
        window=config.sliding_window if kind == "sliding_attention" else 0,
        gate=GateKind.SIGMOID,
        query_scale=None if is_rotary else QueryScale.BY_POWER,
    )
