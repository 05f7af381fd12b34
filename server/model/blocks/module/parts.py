"""Takes a module that keeps recurrent states as a mixer, whatever it computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import nn

from server.model.blocks.capture import LayerCapture
from server.model.blocks.declaration import MixerDeclaration
from server.model.blocks.mixer import LayerPlace, MixerParts
from server.model.blocks.module.declaration import OwnModule
from server.model.blocks.module.mixer import ModuleMixer, declare_call


@dataclass(frozen=True)
class ModuleParts(MixerParts):
    """A module that mixes tokens in another way than attention, and runs as it is."""

    declares: ClassVar[type[MixerDeclaration]] = OwnModule
    keeps_state: ClassVar[bool] = True

    module: Any

    @classmethod
    def find(cls, module: nn.Module, *, keeps_state: bool) -> Self | None:
        return cls(module) if keeps_state else None

    def parameters(self) -> Iterator[nn.Parameter]:
        return iter(self.module.parameters())

    def declare(self, captured: LayerCapture, name: str, place: LayerPlace) -> OwnModule:
        return declare_call(captured, name, place)

    def build(self, declared: OwnModule, place: LayerPlace) -> ModuleMixer:
        return ModuleMixer(self.module, declared, place)
