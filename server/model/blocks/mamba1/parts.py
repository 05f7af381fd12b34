"""Finds Mamba by the names of its parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import nn

from server.model.blocks.declaration import MixerDeclaration
from server.model.blocks.linears import LINEARS
from server.model.blocks.mamba1.declaration import Mamba1
from server.model.blocks.mamba1.mixer import Mamba1Mixer
from server.model.blocks.mixer import LayerPlace, MixerParts

LINEAR_NAMES = ("in_proj", "x_proj", "dt_proj", "out_proj")
SIZES = ("intermediate_size", "ssm_state_size", "time_step_rank")
NORMS = ("dt_layernorm", "b_layernorm", "c_layernorm")
PARAMETERS = ("A_log", "D")


@dataclass(frozen=True)
class Mamba1Parts(MixerParts):
    """The parts of a Mamba mixer."""

    declares: ClassVar[type[MixerDeclaration]] = Mamba1
    keeps_state: ClassVar[bool] = True

    module: Any

    @classmethod
    def find(cls, module: nn.Module, *, keeps_state: bool) -> Self | None:
        has_sizes = all(isinstance(getattr(module, name, None), int) for name in SIZES)
        is_whole = isinstance(getattr(module, "conv1d", None), nn.Conv1d)
        has_linears = all(isinstance(getattr(module, name, None), LINEARS) for name in LINEAR_NAMES)
        has_parameters = all(isinstance(getattr(module, name, None), nn.Parameter) for name in PARAMETERS)
        return cls(module) if keeps_state and has_sizes and is_whole and has_linears and has_parameters else None

    @property
    def norms(self) -> list[Any]:
        """The norms of time steps, keys and queries; none in models that lack them."""
        return [getattr(self.module, name) for name in NORMS if hasattr(self.module, name)]

    def parameters(self) -> Iterator[nn.Parameter]:
        for part in (*(getattr(self.module, name) for name in LINEAR_NAMES), self.module.conv1d, *self.norms):
            yield from part.parameters()
        yield from (getattr(self.module, name) for name in PARAMETERS)

    def build(self, declared: MixerDeclaration, place: LayerPlace) -> Mamba1Mixer:
        del declared
        return Mamba1Mixer(self, place.index)
