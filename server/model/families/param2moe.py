"""Param2: GLM-4.5's attention and DeepSeek-V3's experts."""

from __future__ import annotations

from server.model.families import glm4_moe

declare = glm4_moe.declare
