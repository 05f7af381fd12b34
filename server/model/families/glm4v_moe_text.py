"""The text part of GLM-4.5V and 4.6V: GLM-4.5 with positions of three axes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from server.model.declarations import Declaration, Rotary
from server.model.families import glm4_moe


def declare(config: Any) -> Declaration:
    return replace(glm4_moe.declare(config), rotary=[Rotary(num_axes=3)])
