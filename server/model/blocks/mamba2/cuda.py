"""CudaMamba2: Mamba-2 on a CUDA device."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from server.model.blocks.cuda import CudaPlace, check_known
from server.model.blocks.recurrent.cuda import CudaRecurrentMixer, convolution_of
from server.model.blocks.recurrent.mixer import CONV, RECURRENT, epsilon_of

if TYPE_CHECKING:
    from server.model.blocks.mamba2.parts import Mamba2Parts
    from server.model.blocks.recurrent.triton_step import Rows as StateRows


class CudaMamba2(CudaRecurrentMixer):
    """A launch for the convolution and the recurrence, and one for gates and norms.

    Raises:
        UnsupportedLayerError: the kernels do not have all of it.
    """

    def __init__(self, parts: Mamba2Parts, place: CudaPlace):
        from server.model.blocks.mamba2.triton_step import Mamba2  # noqa: PLC0415  Triton
        from server.model.blocks.recurrent.triton_step import MOST_NORMED, MOST_STATE  # noqa: PLC0415  may not be installed

        module = parts.module
        heads, head_dim, state_size = module.num_heads, module.head_dim, module.ssm_state_size
        norm_size = getattr(module.norm, "group_size", heads * head_dim)
        check_known(
            {
                "states of so many numbers": head_dim * state_size > MOST_STATE,
                "norms of so many numbers": norm_size > MOST_NORMED,
            }
        )
        shapes = {CONV: (module.conv1d.out_channels,), RECURRENT: (heads, head_dim, state_size)}
        super().__init__(module, [parts.input], parts.output, place, shapes)
        least, longest = getattr(module, "time_step_limit", None) or (0.0, math.inf)
        self._mamba = Mamba2(
            convolution_of(module.conv1d), heads, head_dim, module.n_groups, state_size,
            -module.A_log.detach().float().exp(), module.dt_bias.detach().float(), module.D.detach().float(),
            module.norm.weight.detach().float(), norm_size, epsilon_of(module.norm), float(least), float(longest),
        )  # fmt: skip

    def step(self, projected: torch.Tensor, rows: StateRows) -> torch.Tensor:
        return self._mamba.step(projected, rows)
