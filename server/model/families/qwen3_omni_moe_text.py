"""Qwen3-Omni-30B-A3B, which thinks in text: Qwen3's layers, with positions of three axes."""

from __future__ import annotations

from typing import Any

from server.model.declarations import Declaration, GroupedAttention, Rotary, head_scaling
from server.model.families.qwen3_moe import experts, layers


def declare(config: Any) -> Declaration:
    attention = GroupedAttention("self_attn", scaling=head_scaling(config))
    return Declaration(layers=layers(config, attention, experts(config)), rotary=[Rotary(num_axes=3)])
