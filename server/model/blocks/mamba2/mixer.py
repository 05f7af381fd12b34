"""Mamba2Mixer: Mamba-2 as the native kernels run it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from server.kernels.native.structures.mixers import Mamba2, MixerKind
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
    from server.model.blocks.mamba2.parts import Mamba2Parts


class Mamba2Mixer(RecurrentMixer[Mamba2, "Mamba2Parts"]):
    """A projection, a convolution, the recurrence with a direct part, a norm of gated results, and the projection back.

    transformers' modules bound the time steps of prompts, but not those of single tokens after them. Here all are
    bounded, so that chunks change no bit.
    """

    kind = MixerKind.MAMBA2
    spec_type = Mamba2

    def describe(self, parts: Mamba2Parts) -> None:
        spec, module = self.spec, parts.module
        spec.heads, spec.head_dim = module.num_heads, module.head_dim
        spec.groups, spec.state_size = module.n_groups, module.ssm_state_size
        inner = spec.heads * spec.head_dim
        self.set_projections(spec.projections, [parts.input], parts.output)
        self.set_convolution(spec.convolution, module.conv1d, has_silu=True)
        check_sizes(dict.fromkeys((module.A_log, module.D, module.dt_bias), spec.heads) | {module.norm.weight: inner})
        spec.decay, spec.step_bias = self.keep(-module.A_log.float().exp()), self.keep(module.dt_bias)
        spec.direct, spec.norm = self.keep(module.D), self.keep(module.norm.weight)
        spec.norm_size = getattr(module.norm, "group_size", inner)
        spec.norm_epsilon = epsilon_of(module.norm)
        spec.least_step, spec.longest_step = getattr(module, "time_step_limit", None) or (0.0, math.inf)

    @property
    def shapes(self) -> Shapes:
        spec = self.spec
        return {CONV: conv_shape(spec.convolution), RECURRENT: (spec.heads, spec.state_size, padded(spec.head_dim))}
