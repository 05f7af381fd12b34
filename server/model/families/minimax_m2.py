"""MiniMax-M2: attention with norms over all heads, and experts that corrected sigmoids choose."""

from __future__ import annotations

from typing import Any

from server.model.declarations import Declaration, Experts, GroupedAttention, Layer, Router, RouterKind, head_scaling
from server.model.declarations.gguf import (
    GROUPED,
    NORMS,
    ROTATED_IN_PART,
    SIGMOID,
    Architecture,
    GgufFile,
    Place,
    Values,
    decoder_values,
    local_experts,
    one_of,
    partly_rotated,
)


def declare(config: Any) -> Declaration:
    router = Router(correction="mlp.e_score_correction_bias", kind=RouterKind.SIGMOID, top_k=config.num_experts_per_tok)
    layer = Layer(mixer=GroupedAttention("self_attn", scaling=head_scaling(config)), experts=Experts(router=router))
    return Declaration(layers=[layer] * config.num_hidden_layers)


PLACES = {**NORMS, **GROUPED, "exp_probs_b.bias": Place("mlp.e_score_correction_bias")}


def gguf_config(file: GgufFile) -> Values:
    """``minimax-m2``: norms over all queries and all keys, experts scored by sigmoid."""
    values = decoder_values(file)
    return (
        values
        | partly_rotated(file, values)
        | {
            "model_type": "minimax_m2",
            **local_experts(file),
        }
    )


GGUF = Architecture("minimax-m2", gguf_config, PLACES, keys={**ROTATED_IN_PART, "expert_gating_func": one_of(SIGMOID)})
