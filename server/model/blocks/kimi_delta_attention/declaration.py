"""Declares Kimi delta attention."""

from __future__ import annotations

from dataclasses import dataclass

from server.model.blocks.declaration import MixerDeclaration


@dataclass(frozen=True)
class KimiDeltaAttention(MixerDeclaration):
    """A delta rule with a decay for each number of a key."""
