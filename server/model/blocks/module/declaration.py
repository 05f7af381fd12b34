"""Declares a family's own module as a mixer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from server.model.blocks.declaration import MixerDeclaration


class Role(StrEnum):
    """An argument that is another one in each step."""

    ROWS = "the normed rows"
    CACHE = "the states of recurrent layers"
    ANGLES = "cosines and sines of the rows' positions"
    POSITIONS = "the rows' positions"


Argument = Role | bool | int | float | str | None  # a constant, or the role of one that changes


@dataclass(frozen=True)
class OwnModule(MixerDeclaration):
    """A module of transformers that mixes tokens in a way the kernels do not have."""

    arguments: tuple[Argument, ...] = ()
    named: Mapping[str, Argument] = field(default_factory=dict)
