"""Declares lightning attention."""

from __future__ import annotations

from dataclasses import dataclass

from server.model.blocks.declaration import MixerDeclaration


@dataclass(frozen=True)
class LightningAttention(MixerDeclaration):
    """Linear attention with a constant decay for each head."""
