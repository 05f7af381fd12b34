"""GLM-4.5, 4.6 and 4.7: grouped-query attention and DeepSeek-V3's experts."""

from __future__ import annotations

from typing import Any

from server.model.declarations import Declaration, GroupedAttention, head_scaling
from server.model.declarations.gguf import (
    CORRECTION,
    GROUPED,
    GROUPS,
    POSITIONS_OF_AXES,
    POST_NORM,
    ROTATED_IN_PART,
    SIGMOID,
    Architecture,
    GgufFile,
    Values,
    decoder_values,
    expert_values,
    one_of,
    partly_rotated,
    shared_linears,
)
from server.model.families.deepseek_v3 import layer


def declare(config: Any) -> Declaration:
    attention = GroupedAttention("self_attn", scaling=head_scaling(config))
    return Declaration(
        layers=[
            layer(config, attention, is_sparse=index >= config.first_k_dense_replace)
            for index in range(config.num_hidden_layers)
        ]
    )


PLACES = {**POST_NORM, **GROUPED, **CORRECTION, **shared_linears("mlp.shared_experts")}


def gguf_config(file: GgufFile) -> Values:
    """``glm4moe``: GLM-4.5 to 4.7."""
    values, experts = decoder_values(file), expert_values(file)
    return (
        values
        | experts
        | partly_rotated(file, values)
        | {
            "model_type": "glm4_moe",
            "n_routed_experts": experts["num_experts"],
            "n_shared_experts": file.integer("expert_shared_count", 1),
            "first_k_dense_replace": file.integer("leading_dense_block_count", 0),
            "routed_scaling_factor": file.number("expert_weights_scale", 1.0) or 1.0,
            "norm_topk_prob": bool(file.value("expert_weights_norm", True)),
            "n_group": file.integer("expert_group_count", 1),
            "topk_group": file.integer("expert_group_used_count", 1),
            "use_qk_norm": "blk.0.attn_q_norm.weight" in file.tensors,
            "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        }
    )


GGUF = Architecture(
    "glm4moe",
    gguf_config,
    PLACES,
    keys={**GROUPS, **ROTATED_IN_PART, **POSITIONS_OF_AXES, "expert_gating_func": one_of(SIGMOID)},
)
