"""OLMoE-1B-7B: attention with norms over all heads, and Qwen3's experts."""

from __future__ import annotations

from typing import Any

from server.model.declarations import Declaration, GroupedAttention, Layer, head_scaling
from server.model.declarations.gguf import GROUPED, NORMS, Architecture, GgufFile, Values, decoder_values, expert_values
from server.model.families.qwen3_moe import experts


def declare(config: Any) -> Declaration:
    layer = Layer(mixer=GroupedAttention("self_attn", scaling=head_scaling(config)), experts=experts(config))
    return Declaration(layers=[layer] * config.num_hidden_layers)


def gguf_config(file: GgufFile) -> Values:
    """``olmoe``: norms over all queries and all keys."""
    experts = expert_values(file)
    return decoder_values(file) | {
        "model_type": "olmoe",
        "intermediate_size": experts["moe_intermediate_size"],
        "num_experts": experts["num_experts"],
        "num_experts_per_tok": experts["num_experts_per_tok"],
        "norm_topk_prob": bool(file.value("expert_weights_norm", False)),
    }


GGUF = Architecture("olmoe", gguf_config, {**NORMS, **GROUPED})
