"""The text part of Hunyuan 4 VL: Hunyuan 4 with positions of three axes."""

from __future__ import annotations

from typing import Any

from server.model.declarations import Declaration, Rotary
from server.model.families import hy_v4


def declare(config: Any) -> Declaration:
    return hy_v4.declare(config, [Rotary(num_axes=3)])
