"""Declarations of mixers: the facts that the modules of a family do not show by their structure."""

from __future__ import annotations

from dataclasses import dataclass

from server.kernels.native.structures.mixers import RopeKind


@dataclass(frozen=True)
class MixerDeclaration:
    """The part of a layer in which tokens see others."""

    module: str  # its name in the layer


@dataclass(frozen=True, kw_only=True)
class RotaryDeclaration(MixerDeclaration):
    """A mixer that may rotate queries and keys by their positions."""

    rope: RopeKind = RopeKind.HALVES  # the pairs of a head's numbers that are rotated together
    rotary: int = 0  # number of the model's kind of rotary positions
