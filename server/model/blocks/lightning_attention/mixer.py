"""LightningAttentionMixer: lightning attention as the native kernels run it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from server.kernels.native.activation import recognise_gate
from server.kernels.native.structures.mixers import LightningAttention, MixerKind
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.recurrent.mixer import (
    RECURRENT,
    RecurrentMixer,
    Shapes,
    check_sizes,
    epsilon_of,
    interleaved,
    padded,
)

if TYPE_CHECKING:
    from server.model.blocks.lightning_attention.parts import LightningAttentionParts


class LightningAttentionMixer(RecurrentMixer[LightningAttention, "LightningAttentionParts"]):
    """Projections, an activation, the recurrence, a norm of all heads, gates, and the output projection."""

    kind = MixerKind.LIGHTNING_ATTENTION
    spec_type = LightningAttention

    def describe(self, parts: LightningAttentionParts) -> None:
        spec, module = self.spec, parts.module
        heads, size = module.num_attention_heads, module.head_dim
        spec.heads, spec.head_dim, inner = heads, size, heads * size
        places = torch.cat([interleaved(heads, (size, size, size)), torch.arange(3 * inner, 4 * inner)])
        self.set_projections(spec.projections, [module.qkv_proj, module.output_gate], module.out_proj, places)
        check_sizes({module.slope_rate: heads, module.norm.weight: inner})
        spec.decay = self.keep((-module.slope_rate.float()).exp().flatten())
        spec.norm, spec.norm_epsilon = self.keep(module.norm.weight), epsilon_of(module.norm)
        like: Any = SimpleNamespace(has_gate=False, act_fn=module.act_fn)
        gate = recognise_gate(like)
        if gate is None:
            raise UnsupportedLayerError("its lightning attention has an unknown activation")
        spec.activation = gate.activation

    @property
    def shapes(self) -> Shapes:
        return {RECURRENT: (self.spec.heads, self.spec.head_dim, padded(self.spec.head_dim))}
