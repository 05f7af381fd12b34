"""Finds grouped-query attention by the names of its projections."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

from torch import nn

from server.model.blocks.capture import LayerCapture
from server.model.blocks.grouped_attention.mixer import GroupedAttentionMixer
from server.model.blocks.linears import LINEARS, Linear
from server.model.blocks.mixer import LayerPlace, MixerParts
from server.model.blocks.norms import Norm, find_norm

HEAD_NORMS = ("q_norm", "q_layernorm"), ("k_norm", "k_layernorm")
OUTPUTS = ("o_proj", "out_proj", "dense")


@dataclass(frozen=True)
class GroupedAttentionParts(MixerParts):
    """The parts of grouped-query attention."""

    module: Any
    query: Linear
    key: Linear
    value: Linear
    output: Linear
    query_norm: Norm | None
    key_norm: Norm | None

    @classmethod
    def find(cls, module: nn.Module, *, keeps_state: bool) -> Self | None:
        found = [getattr(module, name, None) for name in ("q_proj", "k_proj", "v_proj")]
        output = next((getattr(module, name) for name in OUTPUTS if hasattr(module, name)), None)
        linears = [linear for linear in (*found, output) if isinstance(linear, LINEARS)]
        if keeps_state or len(linears) != 4:  # noqa: PLR2004
            return None
        query, key, value, back = linears
        query_norm, key_norm = (_head_norm(module, names) for names in HEAD_NORMS)
        return cls(module, query, key, value, back, query_norm, key_norm)

    def parameters(self) -> Iterator[nn.Parameter]:
        for linear in (self.query, self.key, self.value, self.output):
            yield from linear.parameters()
        for norm in (self.query_norm, self.key_norm):
            if norm is not None:
                yield from norm.module.parameters()
        yield from (value for name, value in self.module.named_parameters(recurse=False) if "sink" in name)

    def build(self, captured: LayerCapture, place: LayerPlace) -> GroupedAttentionMixer:
        return GroupedAttentionMixer(self, captured.options, place.index)


def _head_norm(attention: nn.Module, names: Iterable[str]) -> Norm | None:
    norm = next((found for name in names if (found := getattr(attention, name, None)) is not None), None)
    return None if norm is None else find_norm(norm)
