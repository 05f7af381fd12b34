"""dots.llm1: attention as in Qwen3, with a window in some layers, and DeepSeek-V3's experts."""

from __future__ import annotations

from typing import Any

from server.model.declarations import Declaration, GroupedAttention, head_scaling
from server.model.declarations.gguf import (
    CORRECTION,
    GROUPED,
    GROUPS,
    NORMS,
    SIGMOID,
    Architecture,
    GgufFile,
    Values,
    decoder_values,
    expert_values,
    one_of,
    shared_linears,
)
from server.model.families.deepseek_v3 import layer


def declare(config: Any) -> Declaration:
    windows = {"sliding_attention": config.sliding_window, "full_attention": 0}
    return Declaration(
        layers=[
            layer(
                config,
                GroupedAttention("self_attn", scaling=head_scaling(config), window=windows[kind]),
                is_sparse=index >= config.first_k_dense_replace,
            )
            for index, kind in enumerate(config.layer_types)
        ]
    )


PLACES = {**NORMS, **GROUPED, **CORRECTION, **shared_linears("mlp.shared_experts")}


def gguf_config(file: GgufFile) -> Values:
    """``dots1``: experts scored by sigmoid in groups, some of them shared."""
    experts = expert_values(file)
    return (
        decoder_values(file)
        | experts
        | {
            "model_type": "dots1",
            "n_routed_experts": experts["num_experts"],
            "n_shared_experts": file.integer("expert_shared_count"),
            "first_k_dense_replace": file.integer("leading_dense_block_count", 0),
            "routed_scaling_factor": file.number("expert_weights_scale", 1.0) or 1.0,
            "norm_topk_prob": bool(file.value("expert_weights_norm", False)),
            "n_group": file.integer("expert_group_count", 1),
            "topk_group": file.integer("expert_group_used_count", 1),
            "sliding_window": None,
        }
    )


GGUF = Architecture("dots1", gguf_config, PLACES, keys={**GROUPS, "expert_gating_func": one_of(SIGMOID)})
