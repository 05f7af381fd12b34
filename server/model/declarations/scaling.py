"""The factors of attention's scores that configs give."""

from __future__ import annotations

import math
from typing import Any


def head_scaling(config: Any) -> float:
    """Return the inverse root of the size of a head."""
    head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return float(head_dim**-0.5)


def latent_scaling(config: Any) -> float:
    """Return the inverse root of the size of a head of latent attention, times YaRN's factor for long sequences.

    It mirrors ``yarn_apply_mscale`` of transformers.
    """
    scaling = float((config.qk_nope_head_dim + config.qk_rope_head_dim) ** -0.5)
    rope = config.rope_parameters
    if rope.get("rope_type", "default") == "default" or rope["factor"] <= 1:
        return scaling
    mscale: float = 0.1 * rope.get("mscale_all_dim", 0) * math.log(rope["factor"]) + 1
    return scaling * mscale * mscale
