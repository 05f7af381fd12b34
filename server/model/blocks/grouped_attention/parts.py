"""Finds grouped-query attention by the names of its projections."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

from server.model.blocks.capture import LayerCapture
from server.model.blocks.grouped_attention.indexer import BlockIndexerParts
from server.model.blocks.grouped_attention.mixer import GroupedAttentionMixer
from server.model.blocks.grouped_attention.pool_indexer import PoolIndexerParts
from server.model.blocks.grouped_attention.relative_biases import RelativeParts
from server.model.blocks.linears import LINEARS, Linear
from server.model.blocks.mixer import LayerPlace, MixerParts
from server.model.blocks.norms import Norm, find_norm
from server.model.blocks.residual_convolution import ResidualConvolution

HEAD_NORMS = (
    ("q_norm", "q_layernorm", "query_layernorm", "qk_norm"),
    ("k_norm", "k_layernorm", "key_layernorm", "qk_norm"),
)
VALUE_NORM = "v_norm"
GATES = ("g_proj", "gate_proj")
CONVOLUTIONS = ("k_sconv", "v_sconv")  # of keys before their norm, and of values
JOINED = "Wqkv"  # a projection of queries, keys and values
OUTPUTS = ("o_proj", "out_proj", "dense")


@dataclass(frozen=True)
class GroupedAttentionParts(MixerParts):
    """The parts of grouped-query attention."""

    module: Any
    query: Linear  # or queries, keys and values one after the other, if there is no projection of keys
    key: Linear | None
    value: Linear | None  # none: values are the keys before norm and rotation
    output: Linear
    gate: Linear | None  # of attention's results
    gate_bias: torch.Tensor | None  # (heads,)
    query_norm: Norm | None
    key_norm: Norm | None
    value_norm: Norm | None
    indexer: BlockIndexerParts | None = None
    pools: PoolIndexerParts | None = None
    relative: RelativeParts | None = None
    convolutions: Sequence[ResidualConvolution] = ()  # of keys and of values, or none

    @classmethod
    def find(cls, module: nn.Module, *, keeps_state: bool) -> Self | None:
        own: Any = module
        query, key, value = (getattr(own, name, None) for name in ("q_proj", "k_proj", "v_proj"))
        output: Any = next((getattr(module, name) for name in OUTPUTS if hasattr(module, name)), None)
        joined = getattr(own, JOINED, None)
        if joined is not None:
            query = joined
        has_values = isinstance(value, LINEARS) or (value is None and hasattr(module, "v_proj"))
        has_keys = isinstance(key, LINEARS) and has_values
        if keeps_state or not (has_keys or (joined is not None and key is value is None)):
            return None
        if not (isinstance(query, LINEARS) and isinstance(output, LINEARS)):
            return None
        gate = next((found for name in GATES if isinstance(found := getattr(module, name, None), LINEARS)), None)
        query_norm, key_norm = (_head_norm(module, names) for names in HEAD_NORMS)
        value_norm = getattr(module, VALUE_NORM, None)
        if value_norm is not None:
            value_norm = find_norm(value_norm, int(own.head_dim))
        gate_bias = getattr(module, "gate_bias", None)
        norms = query_norm, key_norm, value_norm
        found = [getattr(module, name) for name in CONVOLUTIONS if isinstance(getattr(module, name, None), nn.Module)]
        convolutions = [each for child in found if (each := ResidualConvolution.find(child)) is not None]
        return cls(
            module,
            *(query, key, value, output, gate, gate_bias, *norms),
            indexer=BlockIndexerParts.find(module),
            pools=PoolIndexerParts.find(module),
            relative=RelativeParts.find(module),
            convolutions=convolutions if len(convolutions) == len(CONVOLUTIONS) else (),
        )

    def parameters(self) -> Iterator[nn.Parameter]:
        for linear in (self.query, self.key, self.value, self.output, self.gate):
            if linear is not None:
                yield from linear.parameters()
        for norm in (self.query_norm, self.key_norm, self.value_norm):
            if norm is not None:
                yield from norm.module.parameters()
        if isinstance(self.gate_bias, nn.Parameter):
            yield self.gate_bias
        for indexer in (self.indexer, self.pools):
            if indexer is not None:
                yield from indexer.parameters()
        if self.relative is not None:
            yield from (*self.relative.weights.parameters(), self.relative.profiles)
        for convolution in self.convolutions:
            yield from convolution.module.parameters()
        yield from (value for name, value in self.module.named_parameters(recurse=False) if "sink" in name)

    @property
    def key_epsilon(self) -> float | None:
        """The epsilon of the keys' norm."""
        return None if self.key_norm is None else self.key_norm.epsilon

    def build(self, captured: LayerCapture, place: LayerPlace) -> GroupedAttentionMixer:
        return GroupedAttentionMixer(self, captured, place)


def _head_norm(attention: Any, names: Iterable[str]) -> Norm | None:
    norm = next((found for name in names if (found := getattr(attention, name, None)) is not None), None)
    return None if norm is None else find_norm(norm, int(getattr(attention, "head_dim", 0)) or None)
