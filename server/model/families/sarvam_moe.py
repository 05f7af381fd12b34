"""Sarvam-30B: GLM-4.5's layers, which are grouped-query attention and DeepSeek-V3's experts."""

from __future__ import annotations

from typing import Any

from server.model.declarations import Declaration, GroupedAttention, head_scaling
from server.model.families.deepseek_v3 import layer


def declare(config: Any) -> Declaration:
    attention = GroupedAttention("self_attn", scaling=head_scaling(config))
    return Declaration(
        layers=[
            layer(config, attention, is_sparse=index >= config.first_k_dense_replace)
            for index in range(config.num_hidden_layers)
        ]
    )
