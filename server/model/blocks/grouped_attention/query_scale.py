"""Factors by which layers without rotary positions scale their queries."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from server.model.blocks.capture import LayerCapture

TEMPERATURE = "attn_temperature_tuning"  # attribute of an attention whose queries are scaled (Llama 4)
SCALING = "attention_scaling"  # argument of one whose queries are scaled (Beam)
SCALING_POWER, SCALING_LENGTH = 0.1, 2048  # which transformers has as numbers


def query_scale_of(module: Any, captured: LayerCapture) -> Callable[[int], float] | None:
    """Return the function of positions that gives the factors; None if queries are not scaled.

    Args:
        module: of the attention.
        captured: a call of its layer.
    """
    if getattr(module, TEMPERATURE, False) and not module.use_rope:
        factor, length = float(module.attn_scale), int(module.floor_scale)
        return lambda position: 1.0 + factor * math.log1p((position + 1) // length)
    if captured.mixer is not None and captured.mixer.kwargs.get(SCALING) is not None:
        return lambda position: (1.0 + (position + 1) / SCALING_LENGTH) ** SCALING_POWER
    return None
