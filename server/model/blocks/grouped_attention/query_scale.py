"""Factors by which layers without rotary positions scale their queries."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from server.model.blocks.capture import LayerCapture

TEMPERATURE = "attn_temperature_tuning"  # attribute of an attention whose queries are scaled (Llama 4)
SCALING = "attention_scaling"  # argument of one whose queries are scaled (Beam)
FLOOR, GROWTH = "log_scaling_n_floor", "log_scaling_alpha"  # of the config of one that scales those of far tokens
WITHOUT_SCALE = "is_sliding"  # attribute of such an attention whose queries are not scaled (Inkling)
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
    config = getattr(module, "config", None)
    floor = getattr(config, FLOOR, None)
    if floor and not getattr(module, WITHOUT_SCALE, False):
        growth = float(getattr(config, GROWTH))
        return lambda position: 1.0 + growth * math.log(max((position + 1) / floor, 1.0))
    return None
