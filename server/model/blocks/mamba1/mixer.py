"""Mamba1Mixer: Mamba as the native kernels run it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional as F

from server.kernels.native.structures.mixers import Mamba1, MixerKind
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.linears import matrix_of
from server.model.blocks.recurrent.mixer import (
    CONV,
    RECURRENT,
    RecurrentMixer,
    Shapes,
    check_sizes,
    conv_shape,
    epsilon_of,
    padded,
)

if TYPE_CHECKING:
    from server.model.blocks.mamba1.parts import Mamba1Parts

SELECT = 2  # number of its matrix for adapters, after the input and the output


class Mamba1Mixer(RecurrentMixer[Mamba1, "Mamba1Parts"]):
    """A projection, a convolution, time steps, keys and queries, the scan, gates, and the projection back.

    Adapters of ``dt_proj`` add nothing, as in transformers' modules, which multiply by its weights without calling it.
    """

    kind = MixerKind.MAMBA1
    spec_type = Mamba1

    def describe(self, parts: Mamba1Parts) -> None:
        spec, module = self.spec, parts.module
        inner, states, rank = module.intermediate_size, module.ssm_state_size, module.time_step_rank
        self.set_projections(spec.projections, [module.in_proj], module.out_proj)
        self.set_convolution(spec.convolution, module.conv1d, has_silu=True)
        if module.x_proj.bias is not None or module.dt_proj.bias is None:
            raise UnsupportedLayerError("its time steps have other biases")
        spec.select, spec.to_steps, spec.state_size = matrix_of(module.x_proj), matrix_of(module.dt_proj), states
        self.add_target(module.x_proj, SELECT)
        check_sizes({module.A_log: inner * states, module.D: inner, module.dt_proj.bias: inner})
        if parts.norms:
            if len(parts.norms) != len(sizes := (rank, states, states)):
                raise UnsupportedLayerError("only some of its time steps, keys and queries have norms")
            check_sizes({norm.weight: size for norm, size in zip(parts.norms, sizes, strict=True)})
            spec.step_norm, spec.key_norm, spec.query_norm = (self.keep(norm.weight) for norm in parts.norms)
            spec.norm_epsilon = epsilon_of(parts.norms[0])
        decay = -module.A_log.float().exp().T
        spec.decay = self.keep(F.pad(decay, (0, padded(inner) - inner)))
        spec.direct, spec.step_bias = self.keep(module.D), self.keep(module.dt_proj.bias)

    @property
    def shapes(self) -> Shapes:
        spec = self.spec
        return {CONV: conv_shape(spec.convolution), RECURRENT: (spec.state_size, padded(spec.convolution.channels))}
