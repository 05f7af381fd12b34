"""Granite 3 with experts and an MLP beside them."""

from __future__ import annotations

from typing import Any

from server.model.declarations import Declaration, GroupedAttention
from server.model.families.granitemoe import layer, model


def declare(config: Any) -> Declaration:
    attention = GroupedAttention("self_attn", scaling=config.attention_multiplier)
    own = layer(config, attention, has_shared=config.shared_intermediate_size > 0)
    return model(config, [own] * config.num_hidden_layers)
