"""Qwen4-Exp: Qwen3.5's layers on a residual stream of several rows, with an indexer and embedded n-grams."""

from __future__ import annotations

from typing import Any

from server.model.declarations import (
    Declaration,
    GatedDeltaNet,
    GateKind,
    GroupedAttention,
    Layer,
    RopeKind,
    Rotary,
    head_scaling,
)
from server.model.families.qwen2_moe import shared_expert
from server.model.families.qwen3_moe import experts


def declare(config: Any) -> Declaration:
    attention = GroupedAttention(
        "self_attn", scaling=head_scaling(config), gate=GateKind.SIGMOID, index_rope=RopeKind.HALVES
    )
    mixers = {"linear_attention": GatedDeltaNet("linear_attn"), "indexed_attention": attention}
    layers = [
        Layer(
            mixer=mixers[kind],
            experts=experts(config),
            mlp=shared_expert(),
            input_norm=None,
            inner_norm=None,
            streams=["attn_hyper_connection", "mlp_hyper_connection"],
            ngrams="ple" if number in config.ple_layer_ids else None,
        )
        for number, kind in enumerate(config.layer_types, 1)
    ]
    return Declaration(layers=layers, rotary=[Rotary(num_axes=3)], num_streams=config.hc_count)
