"""Finds short convolutions by the names of their parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import nn

from server.model.blocks.cuda import CudaPlace
from server.model.blocks.declaration import MixerDeclaration
from server.model.blocks.linears import LINEARS, Linear
from server.model.blocks.mixer import LayerPlace, MixerParts
from server.model.blocks.short_convolution.cuda import CudaShortConvolution
from server.model.blocks.short_convolution.declaration import ShortConvolution
from server.model.blocks.short_convolution.mixer import ShortConvolutionMixer


@dataclass(frozen=True)
class ShortConvolutionParts(MixerParts):
    """The parts of a short convolution."""

    declares: ClassVar[type[MixerDeclaration]] = ShortConvolution
    keeps_state: ClassVar[bool] = True

    module: Any
    convolution: nn.Conv1d
    input: Linear
    output: Linear

    @classmethod
    def find(cls, module: nn.Module, *, keeps_state: bool) -> Self | None:
        convolution, before, after = (getattr(module, name, None) for name in ("conv", "in_proj", "out_proj"))
        if not keeps_state or not isinstance(convolution, nn.Conv1d):
            return None
        if not isinstance(before, LINEARS) or not isinstance(after, LINEARS):
            return None
        return cls(module, convolution, before, after)

    def parameters(self) -> Iterator[nn.Parameter]:
        for part in (self.convolution, self.input, self.output):
            yield from part.parameters()

    def build(self, declared: MixerDeclaration, place: LayerPlace) -> ShortConvolutionMixer:
        del declared
        return ShortConvolutionMixer(self, place.index)

    def for_cuda(self, declared: MixerDeclaration, place: CudaPlace) -> CudaShortConvolution:
        del declared
        return CudaShortConvolution(self, place)
