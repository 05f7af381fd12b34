"""Finds lightning attention by the names of its parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import nn

from server.model.blocks.declaration import MixerDeclaration
from server.model.blocks.lightning_attention.declaration import LightningAttention
from server.model.blocks.lightning_attention.mixer import LightningAttentionMixer
from server.model.blocks.linears import LINEARS
from server.model.blocks.mixer import LayerPlace, MixerParts

LINEAR_NAMES = ("qkv_proj", "output_gate", "out_proj")
SIZES = ("num_attention_heads", "head_dim")
SLOPES = "slope_rate"  # tensor: negative logarithms of decays


@dataclass(frozen=True)
class LightningAttentionParts(MixerParts):
    """The parts of lightning attention."""

    declares: ClassVar[type[MixerDeclaration]] = LightningAttention
    keeps_state: ClassVar[bool] = True

    module: Any

    @classmethod
    def find(cls, module: nn.Module, *, keeps_state: bool) -> Self | None:
        has_sizes = all(isinstance(getattr(module, name, None), int) for name in SIZES)
        is_whole = all(isinstance(getattr(module, name, None), LINEARS) for name in LINEAR_NAMES)
        has_slopes = isinstance(getattr(module, SLOPES, None), torch.Tensor)
        has_rest = has_slopes and hasattr(module, "norm") and hasattr(module, "act_fn")
        return cls(module) if keeps_state and has_sizes and is_whole and has_rest else None

    def parameters(self) -> Iterator[nn.Parameter]:
        for name in (*LINEAR_NAMES, "norm"):
            yield from getattr(self.module, name).parameters()

    def build(self, declared: MixerDeclaration, place: LayerPlace) -> LightningAttentionMixer:
        del declared
        return LightningAttentionMixer(self, place.index)
