"""GLM-4.7-Flash: DeepSeek-V3's latent attention and experts."""

from __future__ import annotations

from typing import Any

from server.model.declarations import Declaration
from server.model.families.deepseek_v3 import attention, layer


def declare(config: Any) -> Declaration:
    mixer = attention(config)
    return Declaration(layers=[layer(config, mixer, is_sparse=kind == "sparse") for kind in config.mlp_layer_types])
