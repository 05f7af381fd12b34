"""MiniCPM5: gated attention, and DeepSeek-V3's experts."""

from __future__ import annotations

from typing import Any

from server.model.declarations import Declaration, GateKind, GroupedAttention, head_scaling
from server.model.families.deepseek_v3 import layer


def declare(config: Any) -> Declaration:
    attention = GroupedAttention("self_attn", scaling=head_scaling(config), gate=GateKind.SIGMOID)
    return Declaration(layers=[layer(config, attention, is_sparse=kind == "sparse") for kind in config.mlp_layer_types])
