"""A.X K1: DeepSeek-V3 with a norm of the results of its experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from server.model.declarations import Declaration
from server.model.families.deepseek_v3 import attention, layer


def declare(config: Any) -> Declaration:
    mixer = attention(config)
    kinds = {
        "dense": layer(config, mixer, is_sparse=False),
        "sparse": replace(layer(config, mixer, is_sparse=True), output_norm="mlp.post_mlp_layernorm"),
    }
    return Declaration(layers=[kinds[kind] for kind in config.mlp_layer_types])
