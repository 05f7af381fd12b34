"""Declares a short convolution."""

from __future__ import annotations

from dataclasses import dataclass

from server.model.blocks.declaration import MixerDeclaration


@dataclass(frozen=True)
class ShortConvolution(MixerDeclaration):
    """A causal convolution of each channel between two gates."""
