"""Finds attention to compressed keys by the names of its parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import nn

from server.model.blocks.compressed_attention.declaration import CompressedAttention
from server.model.blocks.compressed_attention.mixer import CompressedAttentionMixer
from server.model.blocks.compressed_attention.short_periods import BIAS, PERIOD, TOP_K
from server.model.blocks.declaration import MixerDeclaration
from server.model.blocks.linears import LINEARS, Linear
from server.model.blocks.mixer import LayerPlace, MixerParts
from server.model.blocks.norms import Norm, norm_of

LINEAR_PARTS = ("q_b_proj", "q_a_proj", "kv_proj", "o_b_proj", "o_a_proj")
NORM_PARTS = ("q_a_norm", "kv_norm")
HEAD_NORM, COMPRESSOR, INDEXER, SINKS = "q_b_norm", "compressor", "indexer", "sinks"
SCORER, WEIGHTS, INDEX_QUERY = "scorer", "weights_proj", "q_b_proj"


@dataclass(frozen=True)
class CompressorParts:
    """The parts of what makes compressed keys."""

    module: Any
    key: Linear
    gate: Linear
    norm: Norm

    @classmethod
    def find(cls, module: Any) -> Self | None:
        """Return the parts; None if the module is something else."""
        key, gate = (_linear(module, name) for name in ("kv_proj", "gate_proj"))
        norm = norm_of(module.kv_norm) if hasattr(module, "kv_norm") else None
        if key is None or gate is None or norm is None or not hasattr(module, BIAS) or not hasattr(module, PERIOD):
            return None
        series = key.out_features // len(norm.weight)
        fits = key.out_features == gate.out_features == series * len(norm.weight) and series in (1, 2)
        return cls(module, key, gate, norm) if fits else None

    @property
    def dim(self) -> int:
        return len(self.norm.weight)

    @property
    def overlaps(self) -> bool:
        """True if a key is made from two periods, of which each has keys and gates of its own."""
        return self.key.out_features != self.dim

    def parameters(self) -> Iterator[nn.Parameter]:
        for module in (self.key, self.gate, self.norm.module):
            yield from module.parameters()
        yield getattr(self.module, BIAS)


@dataclass(frozen=True)
class IndexParts:
    """The parts of what chooses compressed keys."""

    module: Any
    compressor: CompressorParts
    query: Linear
    weights: Linear

    @classmethod
    def find(cls, module: Any) -> Self | None:
        """Return the parts; None if the module is something else."""
        compressor, query = CompressorParts.find(module), _linear(module, INDEX_QUERY)
        weights = _linear(getattr(module, SCORER, None), WEIGHTS)
        if compressor is None or query is None or weights is None or not hasattr(module, TOP_K):
            return None
        return cls(module, compressor, query, weights)

    def parameters(self) -> Iterator[nn.Parameter]:
        yield from self.compressor.parameters()
        for module in (self.query, self.weights):
            yield from module.parameters()


@dataclass(frozen=True)
class CompressedAttentionParts(MixerParts):
    """The parts of an attention whose heads share one key, beside compressed keys if it has some."""

    declares: ClassVar[type[MixerDeclaration]] = CompressedAttention

    module: Any
    query: Linear
    query_down: Linear
    key: Linear
    output: Linear
    groups: Linear  # the rows of each group of heads, one after the other
    query_norm: Norm
    key_norm: Norm
    head_norm: Norm
    compressor: CompressorParts | None
    index: IndexParts | None

    @classmethod
    def find(cls, module: nn.Module, *, keeps_state: bool) -> Self | None:
        of: Any = module
        names = {name for name, _ in module.named_children()}
        if keeps_state or names - {COMPRESSOR} != {*LINEAR_PARTS, *NORM_PARTS, HEAD_NORM}:
            return None
        linears = [linear for name in LINEAR_PARTS if (linear := _linear(of, name)) is not None]
        norms = [norm for name in NORM_PARTS if (norm := norm_of(getattr(of, name))) is not None]
        if len(linears) != len(LINEAR_PARTS) or len(norms) != len(NORM_PARTS):
            return None
        head_norm = norm_of(getattr(of, HEAD_NORM), len(norms[1].weight))
        compressor = index = None
        if COMPRESSOR in names:
            compressor = CompressorParts.find(of.compressor)
            has_index = compressor is not None and hasattr(of.compressor, INDEXER)
            index = IndexParts.find(of.compressor.indexer) if has_index else None
            if compressor is None or (has_index and index is None):
                return None
        if head_norm is None:
            return None
        query, query_down, key, output, groups = linears
        query_norm, key_norm = norms
        return cls(module, query, query_down, key, output, groups, query_norm, key_norm, head_norm, compressor, index)

    def parameters(self) -> Iterator[nn.Parameter]:
        norms = (norm.module for norm in (self.query_norm, self.key_norm, self.head_norm))
        for module in (self.query, self.query_down, self.key, self.output, self.groups, *norms):
            yield from module.parameters()
        yield from (value for name, value in self.module.named_parameters(recurse=False) if name == SINKS)
        for parts in (self.compressor, self.index):
            if parts is not None:
                yield from parts.parameters()

    def build(self, declared: MixerDeclaration, place: LayerPlace) -> CompressedAttentionMixer:
        del declared
        return CompressedAttentionMixer(self, place.index)


def _linear(module: Any, name: str) -> Linear | None:
    """Return a linear layer without a bias; None if the module has none of this name."""
    found = getattr(module, name, None)
    return found if isinstance(found, LINEARS) and found.bias is None else None
