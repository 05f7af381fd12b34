"""Factors by which layers without rotary positions scale their queries."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from server.model.blocks.capture import LayerCapture
from server.model.blocks.grouped_attention.declaration import QueryScale

TEMPERATURE = "attn_temperature_tuning"  # attribute of an attention whose queries are scaled (Llama 4)
SCALING = "attention_scaling"  # argument of one whose queries are scaled (Beam)
FLOOR, GROWTH = "log_scaling_n_floor", "log_scaling_alpha"  # of the config of one that scales those of far tokens
WITHOUT_SCALE = "is_sliding"  # attribute of such an attention whose queries are not scaled (Inkling)
SCALING_POWER, SCALING_LENGTH = 0.1, 2048  # which transformers has as numbers


def kind_of_query_scale(module: Any, captured: LayerCapture) -> QueryScale | None:
    """Return the kind of function that gives the factors; None if queries are not scaled.

    Args:
        module: of the attention.
        captured: a call of its layer.
    """
    if getattr(module, TEMPERATURE, False) and not module.use_rope:
        return QueryScale.BY_STEPS
    if captured.mixer is not None and captured.mixer.kwargs.get(SCALING) is not None:
        return QueryScale.BY_POWER
    if getattr(getattr(module, "config", None), FLOOR, None) and not getattr(module, WITHOUT_SCALE, False):
        return QueryScale.BY_LOGARITHM
    return None


def query_scale_of(kind: QueryScale | None, module: Any) -> Callable[[int], float] | None:
    """Return the function of positions that gives the factors; None if queries are not scaled.

    Args:
        kind: of the function.
        module: of the attention, with its numbers.
    """
    if kind is None:
        return None
    if kind is QueryScale.BY_STEPS:
        factor, length = float(module.attn_scale), int(module.floor_scale)
        return lambda position: 1.0 + factor * math.log1p((position + 1) // length)
    if kind is QueryScale.BY_POWER:
        return lambda position: (1.0 + (position + 1) / SCALING_LENGTH) ** SCALING_POWER
    floor, growth = getattr(module.config, FLOOR), float(getattr(module.config, GROWTH))
    return lambda position: 1.0 + growth * math.log(max((position + 1) / floor, 1.0))
