"""Qwen3-VL-30B-A3B and 235B-A22B: Qwen3's layers, with positions of three axes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from server.model.declarations import Declaration, GroupedAttention, Rotary, head_scaling
from server.model.declarations.gguf import HARMLESS, POSITIONS_OF_AXES
from server.model.families import qwen3_moe
from server.model.families.mixtral import experts
from server.model.families.qwen3_moe import layers


def declare(config: Any) -> Declaration:
    attention = GroupedAttention("self_attn", scaling=head_scaling(config))
    return Declaration(layers=layers(config, attention, experts(config)), rotary=[Rotary(num_axes=3)])


GGUF = replace(qwen3_moe.GGUF, name="qwen3vlmoe", keys={**POSITIONS_OF_AXES, "n_deepstack_layers": HARMLESS})
