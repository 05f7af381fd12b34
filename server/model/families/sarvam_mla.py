"""Sarvam-105B: DeepSeek-V3's layers."""

from server.model.families.deepseek_v3 import declare

__all__ = ["declare"]
