"""CudaShortConvolution: a short convolution on a CUDA device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from server.model.blocks.cuda import CudaPlace
from server.model.blocks.recurrent.cuda import CudaRecurrentMixer, convolution_of
from server.model.blocks.recurrent.mixer import CONV

if TYPE_CHECKING:
    from server.model.blocks.recurrent.triton_step import Rows as StateRows
    from server.model.blocks.short_convolution.parts import ShortConvolutionParts


class CudaShortConvolution(CudaRecurrentMixer):
    """A launch between the projections, for gates and the convolution between them."""

    def __init__(self, parts: ShortConvolutionParts, place: CudaPlace):
        shapes = {CONV: (parts.convolution.out_channels,)}
        super().__init__(parts.module, [parts.input], parts.output, place, shapes)
        self._convolution = convolution_of(parts.convolution)

    def step(self, projected: torch.Tensor, rows: StateRows) -> torch.Tensor:
        from server.model.blocks.short_convolution.triton_step import step_convolution  # noqa: PLC0415  may not be installed

        return step_convolution(projected, self._convolution, rows)
