"""Declares Mamba-2."""

from __future__ import annotations

from dataclasses import dataclass

from server.model.blocks.declaration import MixerDeclaration


@dataclass(frozen=True)
class Mamba2(MixerDeclaration):
    """A recurrence with a decay for each head, with a convolution before it and a gated norm after it."""
