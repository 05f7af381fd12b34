"""Declares Mamba."""

from __future__ import annotations

from dataclasses import dataclass

from server.model.blocks.declaration import MixerDeclaration


@dataclass(frozen=True)
class Mamba1(MixerDeclaration):
    """A selective scan of each channel, with a convolution before it and a gate after it."""
