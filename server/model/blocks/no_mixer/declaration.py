"""Declares that a layer has no mixer."""

from __future__ import annotations

from dataclasses import dataclass

from server.model.blocks.declaration import MixerDeclaration


@dataclass(frozen=True)
class NoMixer(MixerDeclaration):
    """The place of a mixer in a layer that is a feed-forward part alone."""

    module: str = ""
