"""Declares a gated delta net."""

from __future__ import annotations

from dataclasses import dataclass

from server.model.blocks.declaration import MixerDeclaration


@dataclass(frozen=True)
class GatedDeltaNet(MixerDeclaration):
    """A recurrence by the delta rule, with a convolution before it and gates after it."""
