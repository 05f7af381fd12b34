"""ShortConvolutionMixer: a short convolution as the native kernels run it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.kernels.native.structures.mixers import MixerKind, ShortConvolution
from server.model.blocks.recurrent.mixer import CONV, RecurrentMixer, Shapes, conv_shape

if TYPE_CHECKING:
    from server.model.blocks.short_convolution.parts import ShortConvolutionParts


class ShortConvolutionMixer(RecurrentMixer[ShortConvolution, "ShortConvolutionParts"]):
    """A projection to gates and inputs, a convolution between two gates, and the output projection."""

    kind = MixerKind.SHORT_CONVOLUTION
    spec_type = ShortConvolution

    def describe(self, parts: ShortConvolutionParts) -> None:
        self.set_projections(self.spec.projections, [parts.input], parts.output)
        self.set_convolution(self.spec.convolution, parts.convolution, has_silu=False)

    @property
    def shapes(self) -> Shapes:
        return {CONV: conv_shape(self.spec.convolution)}
