"""The text part of DeepSeek-OCR-2: DeepSeek-V2 with attention as in Llama."""

from __future__ import annotations

from typing import Any

from server.model.declarations import Declaration, GroupedAttention, head_scaling
from server.model.families.deepseek_v2 import layer


def declare(config: Any) -> Declaration:
    attention = GroupedAttention("self_attn", scaling=head_scaling(config))
    return Declaration(layers=[layer(config, attention, is_sparse=kind == "sparse") for kind in config.mlp_layer_types])
