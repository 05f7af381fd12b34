"""Finds gated delta nets by the names of their parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import nn

from server.model.blocks.cuda import CudaPlace
from server.model.blocks.declaration import MixerDeclaration
from server.model.blocks.gated_delta_net.cuda import CudaGatedDeltaNet
from server.model.blocks.gated_delta_net.declaration import GatedDeltaNet
from server.model.blocks.gated_delta_net.mixer import GatedDeltaNetMixer
from server.model.blocks.linears import LINEARS, Linear
from server.model.blocks.mixer import LayerPlace, MixerParts

TOGETHER = ("in_proj_qkvz", "in_proj_ba")  # parts of each key head, one key head after the other
APART = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")
SIZES = ("num_k_heads", "num_v_heads", "head_k_dim", "head_v_dim")


@dataclass(frozen=True)
class GatedDeltaNetParts(MixerParts):
    """The parts of a gated delta net."""

    declares: ClassVar[type[MixerDeclaration]] = GatedDeltaNet
    keeps_state: ClassVar[bool] = True

    module: Any
    inputs: Sequence[Linear]
    are_together: bool  # whether they are those of ``TOGETHER``
    output: Linear

    @classmethod
    def find(cls, module: nn.Module, *, keeps_state: bool) -> Self | None:
        output = getattr(module, "out_proj", None)
        has_sizes = all(isinstance(getattr(module, name, None), int) for name in SIZES)
        is_whole = isinstance(getattr(module, "conv1d", None), nn.Conv1d) and hasattr(module, "norm")
        if not keeps_state or not has_sizes or not is_whole or not isinstance(output, LINEARS):
            return None
        if not all(isinstance(getattr(module, name, None), nn.Parameter) for name in ("A_log", "dt_bias")):
            return None
        for names in (TOGETHER, APART):
            linears = [linear for name in names if isinstance(linear := getattr(module, name, None), LINEARS)]
            if len(linears) == len(names):
                return cls(module, linears, names is TOGETHER, output)
        return None

    def parameters(self) -> Iterator[nn.Parameter]:
        module = self.module
        for part in (*self.inputs, self.output, module.conv1d, module.norm):
            yield from part.parameters()
        yield from (module.A_log, module.dt_bias)

    def build(self, declared: MixerDeclaration, place: LayerPlace) -> GatedDeltaNetMixer:
        del declared
        return GatedDeltaNetMixer(self, place.index)

    def for_cuda(self, declared: MixerDeclaration, place: CudaPlace) -> CudaGatedDeltaNet:
        del declared
        return CudaGatedDeltaNet(self, place)
