"""KimiDeltaAttentionMixer: Kimi delta attention as the native kernels run it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.kernels.native.structures.mixers import KimiDeltaAttention, MixerKind
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
    from server.model.blocks.kimi_delta_attention.parts import KimiDeltaAttentionParts

LEAST_DECAY = "safe_gate_lower_bound"  # attribute of gates: the smallest logarithm of a decay


class KimiDeltaAttentionMixer(RecurrentMixer[KimiDeltaAttention, "KimiDeltaAttentionParts"]):
    """Projections, a convolution, the recurrence, a norm of each head times a gate, and the output projection."""

    kind = MixerKind.KIMI_DELTA_ATTENTION
    spec_type = KimiDeltaAttention

    def describe(self, parts: KimiDeltaAttentionParts) -> None:
        spec, module, forget = self.spec, parts.module, parts.module.forget_gate
        spec.heads, spec.head_dim = module.num_heads, module.head_dim
        self.set_projections(spec.projections, [first for first, *_ in parts.inputs], parts.output)
        self.set_seconds(spec.projections, {i: second for i, (_, *rest) in enumerate(parts.inputs) for second in rest})
        self.set_convolution(spec.convolution, module.conv1d, has_silu=True)
        inner = spec.heads * spec.head_dim
        check_sizes({forget.A_log: spec.heads, forget.dt_bias: inner, module.o_norm.weight: spec.head_dim})
        spec.decay, spec.decay_bias = self.keep(-forget.A_log.float().exp().flatten()), self.keep(forget.dt_bias)
        spec.norm, spec.norm_epsilon = self.keep(module.o_norm.weight), epsilon_of(module.o_norm)
        least = forget.lower_bound if getattr(forget, "safe_gate", False) else getattr(forget, LEAST_DECAY, None)
        spec.least_decay = 0.0 if least is None else float(least)

    @property
    def shapes(self) -> Shapes:
        spec = self.spec
        return {CONV: conv_shape(spec.convolution), RECURRENT: (spec.heads, spec.head_dim, padded(spec.head_dim))}
