"""Declares attention to compressed keys."""

from __future__ import annotations

from dataclasses import dataclass

from server.model.blocks.declaration import RotaryDeclaration


@dataclass(frozen=True, kw_only=True)
class CompressedAttention(RotaryDeclaration):
    """Queries and one key for all heads, attention to the last keys and to compressed ones, and output projections."""
