"""Solar Open 100B: grouped-query attention, and DeepSeek-V3's experts in all layers."""

from __future__ import annotations

from typing import Any

from server.model.declarations import Declaration, GroupedAttention, head_scaling
from server.model.families.deepseek_v3 import layer


def declare(config: Any) -> Declaration:
    attention = GroupedAttention("self_attn", scaling=head_scaling(config))
    return Declaration(layers=[layer(config, attention, is_sparse=True)] * config.num_hidden_layers)
