"""Finds Mamba-2 by the names of its parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import nn

from server.model.blocks.cuda import CudaPlace
from server.model.blocks.declaration import MixerDeclaration
from server.model.blocks.linears import LINEARS, Linear
from server.model.blocks.mamba2.cuda import CudaMamba2
from server.model.blocks.mamba2.declaration import Mamba2
from server.model.blocks.mamba2.mixer import Mamba2Mixer
from server.model.blocks.mixer import LayerPlace, MixerParts

SIZES = ("num_heads", "head_dim", "n_groups", "ssm_state_size")
PARAMETERS = ("A_log", "D", "dt_bias")


@dataclass(frozen=True)
class Mamba2Parts(MixerParts):
    """The parts of a Mamba-2 mixer."""

    declares: ClassVar[type[MixerDeclaration]] = Mamba2
    keeps_state: ClassVar[bool] = True

    module: Any
    input: Linear
    output: Linear

    @classmethod
    def find(cls, module: nn.Module, *, keeps_state: bool) -> Self | None:
        before, after = (getattr(module, name, None) for name in ("in_proj", "out_proj"))
        has_sizes = all(isinstance(getattr(module, name, None), int) for name in SIZES)
        is_whole = isinstance(getattr(module, "conv1d", None), nn.Conv1d) and hasattr(module, "norm")
        if not keeps_state or not has_sizes or not is_whole:
            return None
        if not isinstance(before, LINEARS) or not isinstance(after, LINEARS):
            return None
        if not all(isinstance(getattr(module, name, None), nn.Parameter) for name in PARAMETERS):
            return None
        return cls(module, before, after)

    def parameters(self) -> Iterator[nn.Parameter]:
        for part in (self.input, self.output, self.module.conv1d, self.module.norm):
            yield from part.parameters()
        yield from (getattr(self.module, name) for name in PARAMETERS)

    def build(self, declared: MixerDeclaration, place: LayerPlace) -> Mamba2Mixer:
        del declared
        return Mamba2Mixer(self, place.index)

    def for_cuda(self, declared: MixerDeclaration, place: CudaPlace) -> CudaMamba2:
        del declared
        return CudaMamba2(self, place)
