"""Mixtral 8x7B and 8x22B: grouped-query attention, and experts that a softmax chooses."""

from __future__ import annotations

from typing import Any

from server.model.declarations import Declaration, Experts, GroupedAttention, Layer, Router, RouterKind, head_scaling
from server.model.declarations.gguf import (
    ATTENTION,
    NORMS,
    PERMUTED,
    ROUTER,
    Architecture,
    GgufFile,
    Values,
    decoder_values,
    local_experts,
    read,
)


def declare(config: Any) -> Declaration:
    attention = GroupedAttention("self_attn", scaling=head_scaling(config), window=config.sliding_window or 0)
    layer = Layer(mixer=attention, experts=experts(config))
    return Declaration(layers=[layer] * config.num_hidden_layers)


def experts(config: Any) -> Experts:
    """Return experts whose weights are a softmax over those of a token."""
    return Experts(router=Router(kind=RouterKind.SOFTMAX_FIRST, top_k=config.num_experts_per_tok))


PLACES = {**NORMS, **ATTENTION, **PERMUTED, **ROUTER}


def gguf_config(file: GgufFile) -> Values:
    """``llama`` with experts, which is Mixtral."""
    return decoder_values(file) | {
        "model_type": "mixtral",
        **local_experts(file),
        "sliding_window": file.integer("attention.sliding_window", 0) or None,
    }


GGUF = Architecture("llama", gguf_config, PLACES, keys=read("attention.sliding_window"))
