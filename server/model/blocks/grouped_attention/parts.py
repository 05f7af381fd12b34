"""Finds grouped-query attention by the names of its projections."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import nn

from server.kernels.native.structures.mixers import GateKind
from server.model.blocks.capture import LayerCapture
from server.model.blocks.cuda import CudaPlace
from server.model.blocks.declaration import MixerDeclaration
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.grouped_attention.cuda import CudaGroupedAttention
from server.model.blocks.grouped_attention.declaration import GroupedAttention
from server.model.blocks.grouped_attention.head_experts import KEYS_AND_VALUES, HeadExpertsParts
from server.model.blocks.grouped_attention.head_limits import HeadLimit
from server.model.blocks.grouped_attention.head_mixing import HeadMixingParts
from server.model.blocks.grouped_attention.indexer import KeyBlockIndexerParts
from server.model.blocks.grouped_attention.mixer import GroupedAttentionMixer
from server.model.blocks.grouped_attention.pool_indexer import PoolChoice, PoolIndexerParts
from server.model.blocks.grouped_attention.query_scale import kind_of_query_scale
from server.model.blocks.grouped_attention.relative_biases import RelativeParts
from server.model.blocks.grouped_attention.token_convolution import TokenConvolution
from server.model.blocks.linears import LINEARS, Linear
from server.model.blocks.mixer import LayerPlace, MixerParts
from server.model.blocks.norms import Norm, find_norm
from server.model.blocks.parameter_names import name_of
from server.model.blocks.residual_convolution import ResidualConvolution

HEAD_NORMS = (
    ("q_norm", "q_layernorm", "query_layernorm", "qk_norm"),
    ("k_norm", "k_layernorm", "key_layernorm", "qk_norm"),
)
VALUE_NORM, RESULT_NORM = "v_norm", "o_norm"
QUERY_FACTOR = "qk_scale_factor"  # attribute: factor of normed queries
QUERIES = ("q_proj", "q_gate_proj")  # the second: each head's query, then its gate
GATES = ("g_proj", "gate_proj")
CONVOLUTIONS = ("k_sconv", "v_sconv")  # of keys before their norm, and of values
JOINED = "Wqkv"  # a projection of queries, keys and values
OUTPUTS = ("o_proj", "out_proj", "dense")
INNER, INNER_NORM, INNER_CONVOLUTION = "linear", "norm", "sconv"  # of modules that a linear layer is a part of
SINK = "sink_proj"
OTHER_ROWS = "key_hidden_states"  # argument of an attention


@dataclass(frozen=True)
class GroupedAttentionParts(MixerParts):
    """The parts of grouped-query attention."""

    declares: ClassVar[type[MixerDeclaration]] = GroupedAttention

    module: Any
    query: Linear  # or queries, keys and values one after the other, if there is no projection of keys; without queries
    # if experts make these
    key: Linear | None
    value: Linear | None  # none: values are the keys before norm and rotation
    output: Any  # a linear layer; None if experts make it
    gate: Linear | None  # of attention's results
    gate_bias: torch.Tensor | None  # (heads,)
    query_norm: Norm | None
    key_norm: Norm | None
    value_norm: Norm | None
    result_norm: Norm | None = None  # of the results of each head, before gates
    indexer: KeyBlockIndexerParts | None = None
    pools: PoolIndexerParts | None = None
    relative: RelativeParts | None = None
    experts: HeadExpertsParts | None = None  # that make queries and the output
    convolutions: Sequence[ResidualConvolution | TokenConvolution] = ()  # of keys and of values, or none
    limits: Sequence[HeadLimit] = ()  # of queries and of keys, or none
    sink: Linear | None = None  # gives a logit for each head of a token that takes weight and has no value
    mixing: HeadMixingParts | None = None  # of queries and keys

    @classmethod
    def find(cls, module: nn.Module, *, keeps_state: bool) -> Self | None:
        own: Any = module
        query_name = next((name for name in QUERIES if hasattr(module, name)), QUERIES[0])
        modules = [getattr(own, name, None) for name in (query_name, "k_proj", "v_proj")]
        mixing = HeadMixingParts.find(module)
        if mixing is not None:
            modules = [mixing.query, mixing.key, mixing.value]
        modules.append(next((getattr(module, name) for name in OUTPUTS if hasattr(module, name)), None))
        query, key, value, output = map(_linear_of, modules)
        experts = HeadExpertsParts.find(module)
        joined = getattr(own, JOINED if experts is None else KEYS_AND_VALUES, None)
        if joined is not None:
            query = joined
        has_values = isinstance(value, LINEARS) or (value is None and hasattr(module, "v_proj"))
        has_keys = isinstance(key, LINEARS) and has_values
        if keeps_state or not (has_keys or (joined is not None and key is value is None)):
            return None
        if not (isinstance(query, LINEARS) and isinstance(output, LINEARS) == (experts is None)):
            return None
        gates = [getattr(each, name, None) for each in (module, modules[-1]) for name in GATES]
        gate = next((each for each in gates if isinstance(each, LINEARS)), None)
        query_norm, key_norm = (
            mixing.head_norm if mixing is not None else _head_norm(module, names) for names in HEAD_NORMS
        )
        if query_norm is not None:
            query_norm = replace(query_norm, weight=query_norm.weight * float(getattr(module, QUERY_FACTOR, 1.0)))
        value_norm, result_norm = (_head_norm(module, [name]) for name in (VALUE_NORM, RESULT_NORM))
        limits = [HeadLimit.find(getattr(each, INNER_NORM, None), own.head_dim) for each in modules[:2]]
        if all(limits):
            value_norm = _head_norm(modules[2], [INNER_NORM])
        gate_bias = getattr(module, "gate_bias", None)
        norms = query_norm, key_norm, value_norm
        inner = [getattr(each, INNER_CONVOLUTION, None) for each in modules[1:3]]
        found = [getattr(module, name, each) for name, each in zip(CONVOLUTIONS, inner, strict=True)]
        convolutions = [each for child in found if (each := _convolution_of(child)) is not None]
        return cls(
            module,
            *(query, key, value, output, gate, gate_bias, *norms),
            result_norm=result_norm,
            indexer=KeyBlockIndexerParts.find(module),
            pools=PoolIndexerParts.find(module),
            relative=RelativeParts.find(module),
            experts=experts,
            convolutions=convolutions if len(convolutions) == len(CONVOLUTIONS) else (),
            limits=[each for each in limits if each is not None],
            sink=getattr(module, SINK, None),
            mixing=mixing,
        )

    def parameters(self) -> Iterator[nn.Parameter]:
        delayed = None if self.mixing is None else self.mixing.delayed
        for linear in (self.query, self.key, self.value, delayed, self.output, self.gate, self.sink):
            if linear is not None:
                yield from linear.parameters()
        for norm in (self.query_norm, self.key_norm, self.value_norm, self.result_norm):
            if norm is not None:
                yield from norm.module.parameters()
        if isinstance(self.gate_bias, nn.Parameter):
            yield self.gate_bias
        for part in (self.indexer, self.pools, self.experts, self.mixing):
            if part is not None:
                yield from part.parameters()
        if self.relative is not None:
            yield from self.relative.parameters()
        for each in (*self.convolutions, *self.limits):
            yield from each.module.parameters()
        yield from (value for name, value in self.module.named_parameters(recurse=False) if "sink" in name)

    @property
    def key_epsilon(self) -> float | None:
        """The epsilon of the keys' norm."""
        return None if self.key_norm is None else self.key_norm.epsilon

    def declare(self, captured: LayerCapture, name: str, place: LayerPlace) -> GroupedAttention:
        del place
        options = captured.options
        if options is None:
            raise UnsupportedLayerError("a layer has no attention")
        if self.indexer is not None and options.chosen is None:
            raise UnsupportedLayerError("it has an indexer that chooses no keys")
        if self.pools is not None:
            PoolChoice.of(captured, self.pools.module)
        return GroupedAttention(
            name,
            scaling=options.scaling,
            window=options.sliding_window or 0,
            is_chunked=bool(options.is_chunked),
            softcap=options.softcap or 0.0,
            sinks=None if self.sink is not None else name_of(options.sinks, self.module),
            gate=GateKind.NONE if self.gate is None else GateKind.SIGMOID,
            query_scale=kind_of_query_scale(self.module, captured),
            takes_other_rows=captured.mixer is not None and captured.mixer.kwargs.get(OTHER_ROWS) is not None,
        )

    def build(self, declared: GroupedAttention, place: LayerPlace) -> GroupedAttentionMixer:
        return GroupedAttentionMixer(self, declared, place)

    def for_cuda(self, declared: GroupedAttention, place: CudaPlace) -> CudaGroupedAttention:
        return CudaGroupedAttention(self, declared, place)


def _linear_of(module: Any) -> Any:
    """Return a linear layer, or the one within a module."""
    inner = getattr(module, INNER, None)
    return inner if isinstance(inner, LINEARS) and not isinstance(module, LINEARS) else module


def _convolution_of(module: Any) -> ResidualConvolution | TokenConvolution | None:
    if not isinstance(module, nn.Module):
        return None
    return ResidualConvolution.find(module) or TokenConvolution.find(module)


def _head_norm(attention: Any, names: Iterable[str]) -> Norm | None:
    norm = next((found for name in names if (found := getattr(attention, name, None)) is not None), None)
    return None if norm is None else find_norm(norm, int(getattr(attention, "head_dim", 0)) or None)
