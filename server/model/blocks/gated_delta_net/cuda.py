"""CudaGatedDeltaNet: a gated delta net on a CUDA device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from server.model.blocks.cuda import CudaPlace, check_known
from server.model.blocks.gated_delta_net.mixer import ACTIVATION, SILU
from server.model.blocks.recurrent.cuda import CudaRecurrentMixer, convolution_of
from server.model.blocks.recurrent.mixer import CONV, RECURRENT, epsilon_of

if TYPE_CHECKING:
    from server.model.blocks.gated_delta_net.parts import GatedDeltaNetParts
    from server.model.blocks.recurrent.triton_step import Rows as StateRows


class CudaGatedDeltaNet(CudaRecurrentMixer):
    """A launch for the convolution and the delta rule, and one for norms and gates.

    Raises:
        UnsupportedLayerError: the kernels do not have all of it.
    """

    def __init__(self, parts: GatedDeltaNetParts, place: CudaPlace):
        from server.model.blocks.gated_delta_net.triton_step import VALUES, GatedDelta  # noqa: PLC0415  Triton
        from server.model.blocks.recurrent.triton_step import MOST_STATE  # noqa: PLC0415  may not be installed

        module = parts.module
        heads, key_dim, value_dim = module.num_k_heads, module.head_k_dim, module.head_v_dim
        check_known(
            {
                "states of so many numbers": key_dim * VALUES > MOST_STATE,
                "convolutions with biases": module.conv1d.bias is not None,
                "its function of gates": getattr(module.norm, ACTIVATION, SILU) != SILU,
            }
        )
        shapes = {CONV: (module.conv1d.out_channels,), RECURRENT: (module.num_v_heads, key_dim, value_dim)}
        super().__init__(module, parts.inputs, parts.output, place, shapes)
        shared = module.num_v_heads // heads
        keys, values = heads * key_dim, heads * shared * value_dim
        wide = shared * value_dim  # of a key head
        if parts.are_together:
            step = 2 * (key_dim + wide)
            scalars = heads * step
            places = 0, step, key_dim, step, 2 * key_dim, step, scalars, scalars + shared, 2 * shared
            gates = 2 * key_dim + wide, step
        else:
            gates = 2 * keys + values, wide
            scalars = gates[0] + values
            places = 0, key_dim, keys, key_dim, 2 * keys, wide, scalars, scalars + heads * shared, shared
        self._delta = GatedDelta(
            convolution_of(module.conv1d), heads, shared, key_dim, value_dim, places, gates,
            -module.A_log.detach().float().exp(), module.dt_bias.detach().float(), module.norm.weight.detach().float(),
            epsilon_of(module.norm),
        )  # fmt: skip

    def step(self, projected: torch.Tensor, rows: StateRows) -> torch.Tensor:
        return self._delta.step(projected, rows)
