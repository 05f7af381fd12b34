"""Stands for the parts of a mixer in a layer that has none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

from torch import nn

from server.model.blocks.declaration import MixerDeclaration
from server.model.blocks.mixer import LayerPlace, MixerParts
from server.model.blocks.no_mixer.declaration import NoMixer as Declaration
from server.model.blocks.no_mixer.mixer import NoMixer


class NoMixerParts(MixerParts):
    """The parts of no module. It is no kind among others: a layer in which none is found has it."""

    declares = Declaration
    module = None

    @classmethod
    def find(cls, module: nn.Module, *, keeps_state: bool) -> Self | None:
        del module, keeps_state
        return None

    def parameters(self) -> Iterator[nn.Parameter]:
        return iter(())

    def build(self, declared: MixerDeclaration, place: LayerPlace) -> NoMixer:
        del declared
        return NoMixer(place.index)
