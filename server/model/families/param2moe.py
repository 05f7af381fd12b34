"""Param2: GLM-4.5's attention and DeepSeek-V3's experts."""

from __future__ import annotations

from server.model.families.glm4_moe import declare as declare
