"""A.X K2: DeepSeek-V3.2 with gates in norms and attention."""

from __future__ import annotations

from server.model.families.deepseek_v32 import declare

__all__ = ["declare"]
