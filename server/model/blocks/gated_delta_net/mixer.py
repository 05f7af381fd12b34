"""GatedDeltaNetMixer: a gated delta net as the native kernels run it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from server.kernels.native.structures.mixers import GatedDeltaNet, MixerKind
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.recurrent.mixer import (
    CONV,
    RECURRENT,
    RecurrentMixer,
    Shapes,
    check_sizes,
    conv_shape,
    epsilon_of,
    interleaved,
    padded,
)

if TYPE_CHECKING:
    from server.model.blocks.gated_delta_net.parts import GatedDeltaNetParts


ACTIVATION, SILU = "activation", "silu"  # attribute of a norm: the function of gates, which a trial confirms


class GatedDeltaNetMixer(RecurrentMixer[GatedDeltaNet, "GatedDeltaNetParts"]):
    """Projections, a convolution, the recurrence, a norm of each head times a gate, and the output projection."""

    kind = MixerKind.GATED_DELTA_NET
    spec_type = GatedDeltaNet

    def describe(self, parts: GatedDeltaNetParts) -> None:
        spec, module = self.spec, parts.module
        spec.key_heads, spec.value_heads = module.num_k_heads, module.num_v_heads
        spec.key_dim, spec.value_dim = module.head_k_dim, module.head_v_dim
        if spec.key_heads < 1 or spec.value_heads % spec.key_heads:
            raise UnsupportedLayerError(f"{spec.value_heads} heads can't share {spec.key_heads} of keys")
        places = self._places() if parts.are_together else None
        self.set_projections(spec.projections, parts.inputs, parts.output, places)
        self.set_convolution(spec.convolution, module.conv1d, has_silu=True)
        heads, weight = spec.value_heads, module.norm.weight
        check_sizes({module.A_log: heads, module.dt_bias: heads, weight: spec.value_dim})
        spec.decay, spec.decay_bias = self.keep(-module.A_log.float().exp()), self.keep(module.dt_bias)
        spec.norm = self.keep(module.norm.weight)
        spec.norm_epsilon = epsilon_of(module.norm)
        spec.has_sigmoid_gates = int(getattr(module.norm, ACTIVATION, SILU) != SILU)

    @property
    def shapes(self) -> Shapes:
        spec = self.spec
        return {
            CONV: conv_shape(spec.convolution),
            RECURRENT: (spec.value_heads, spec.key_dim, padded(spec.value_dim)),
        }

    def _places(self) -> torch.Tensor:
        spec = self.spec
        shared = spec.value_heads // spec.key_heads
        sizes = spec.key_dim, spec.key_dim, shared * spec.value_dim, shared * spec.value_dim
        first = interleaved(spec.key_heads, sizes)
        return torch.cat([first, len(first) + interleaved(spec.key_heads, (shared, shared))])
