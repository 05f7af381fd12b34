"""Finds multi-head latent attention by the names of its projections."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import nn

from server.model.attention.indexer import ROPE_NORM, SINKS
from server.model.attention.mla import LatentProjection
from server.model.blocks.capture import LayerCapture
from server.model.blocks.cuda import CudaPlace
from server.model.blocks.declaration import MixerDeclaration
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.latent_attention.cuda import CudaLatentAttention
from server.model.blocks.latent_attention.declaration import LatentAttention
from server.model.blocks.latent_attention.head_scales import HeadScalesParts
from server.model.blocks.latent_attention.indexer import IndexerParts, check_choice, indexer_of
from server.model.blocks.latent_attention.mixer import LatentAttentionMixer
from server.model.blocks.linears import LINEARS, Linear
from server.model.blocks.mixer import LayerPlace, MixerParts
from server.model.blocks.norms import Norm, norm_of
from server.model.blocks.parameter_names import name_of


@dataclass(frozen=True)
class LatentAttentionParts(MixerParts):
    """The parts of multi-head latent attention."""

    declares: ClassVar[type[MixerDeclaration]] = LatentAttention

    module: Any
    query_down: Linear | None
    query_norm: Norm | None  # after it
    query: Linear
    latent: Linear | None  # none: it takes the latents of an earlier layer
    latent_norm: Norm | None
    rope_norm: Norm | None  # of the part of keys that may be rotated
    expansion: LatentProjection
    output: Linear
    gate: Linear | None
    indexer: IndexerParts | None = None
    query_scale: float = 1.0  # factor of the normed rows that queries are made from
    latent_scale: float = 1.0  # of the normed latents
    head_scales: HeadScalesParts | None = None  # of queries
    source: int = -1  # the layer in the KV cache whose latents it takes

    @classmethod
    def find(cls, module: nn.Module, *, keeps_state: bool) -> Self | None:
        of: Any = module
        expansion = getattr(of, "kv_b_proj", None)
        if keeps_state or not isinstance(expansion, LatentProjection):
            return None
        down = _linear(of, "q_a_proj")
        gate = next((found for name in GATES if (found := _linear(of, name)) is not None), None)
        names = ("q_proj",) if down is None else ("q_b_proj", "q_gate_proj")
        query = next((found for name in names if (found := _linear(of, name)) is not None), None)
        latent, output = (_linear(of, name) for name in ("kv_a_proj_with_mqa", "o_proj"))
        norms = [None if (norm := getattr(of, name, None)) is None else norm_of(norm) for name in NORMS]
        source = _source_of(of) if latent is None else -1
        if query is None or output is None or (down and norms[0] is None):
            return None
        if (norms[1] is None or latent is None) and source < 0:
            return None
        parts = down, norms[0], query, latent, norms[1], norms[2], expansion, output, gate
        scales = [next((float(getattr(of, name)) for name in names if hasattr(of, name)), 1.0) for names in SCALES]
        if down is None and scales[0] != 1:
            return None
        query_scale, latent_scale = scales
        return cls(
            module,
            *parts,
            indexer=IndexerParts.find(of),
            query_scale=query_scale,
            latent_scale=latent_scale,
            head_scales=HeadScalesParts.find(of),
            source=source,
        )

    @property
    def linears(self) -> list[Linear]:
        """The projections besides the expansion of latents."""
        found = self.query_down, self.query, self.latent, self.output, self.gate
        return [linear for linear in found if linear is not None]

    def parameters(self) -> Iterator[nn.Parameter]:
        norms = (norm.module for norm in (self.query_norm, self.latent_norm, self.rope_norm) if norm is not None)
        for module in (*self.linears, *norms, self.expansion):
            yield from module.parameters()
        yield from (value for name, value in self.module.named_parameters(recurse=False) if name == SINKS)
        for parts in (self.indexer, self.head_scales):
            if parts is not None:
                yield from parts.parameters()

    def declare(self, captured: LayerCapture, name: str, place: LayerPlace) -> LatentAttention:
        del place
        options = captured.options
        if options is None or not captured.is_latent:
            raise UnsupportedLayerError("its keys and values are not made from latents and one rotated key")
        if options.softcap or options.is_chunked:
            raise UnsupportedLayerError("its latents are attended to with a cap, or in chunks")
        check_choice(self.indexer, captured, self._config)
        return LatentAttention(
            name,
            scaling=options.scaling,
            window=options.sliding_window or 0,
            sinks=name_of(options.sinks, self.module),
            takes_choice=options.chosen is not None,
        )

    def build(self, declared: LatentAttention, place: LayerPlace) -> LatentAttentionMixer:
        indexer = indexer_of(self.indexer, self._config) if declared.takes_choice else None
        return LatentAttentionMixer(self, declared, place.index, indexer)

    def for_cuda(self, declared: LatentAttention, place: CudaPlace) -> CudaLatentAttention:
        return CudaLatentAttention(self, declared, place)

    @property
    def _config(self) -> Any:
        return getattr(self.module, "config", None)

    @property
    def input_scale(self) -> float:
        """The factor of the rows that queries are made from, by those that the kernels have for them."""
        return 1 / self.query_scale if hasattr(self.module, SCALE_OF_QUERIES) else 1.0

    def query_inputs(self, rows: torch.Tensor) -> torch.Tensor:
        """Return what queries are made from."""
        if self.query_down is None or self.query_norm is None:
            return rows
        down = self.query_down(rows)
        normed: torch.Tensor = self.query_norm.module(down)
        return torch.cat([normed, down], -1) if self.takes_raw else normed

    def _queries(self, rows: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.query(self.query_inputs(rows)) * self.query_scale
        if not self.has_gates_in_query:
            return found
        return found.view(len(rows), self.heads, -1)[..., : self.expansion.nope_dim + self.rope_dim].flatten(1)

    @property
    def heads(self) -> int:
        return self.expansion.expanded_dim // (self.expansion.nope_dim + self.expansion.value_dim)

    @property
    def rope_dim(self) -> int:
        """The numbers of a head's query that may be rotated."""
        if self.latent is not None:
            return self.latent.out_features - self.expansion.rank
        return self.query.out_features // self.heads - self.expansion.nope_dim

    @property
    def takes_raw(self) -> bool:
        """True if queries are made from what their norm takes, too, which follows what it returns."""
        return self.query_down is not None and self.query.in_features == 2 * self.query_down.out_features

    @property
    def has_gates_in_query(self) -> bool:
        """True if gates of a head's results follow each head's query."""
        dim = self.expansion.nope_dim + self.rope_dim + self.expansion.value_dim
        return self.query_down is not None and self.query.out_features == self.heads * dim

    def projected(self, rows: torch.Tensor, captured: LayerCapture) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the queries of rows and their latents with the part of keys that may be rotated, before rotations.

        The latents of an earlier layer are those of the capture, after rotations.
        """
        if self.latent is None or self.latent_norm is None:
            assert captured.latents is not None
            return self._queries(rows), captured.latents
        rank = self.expansion.rank
        latent, rotated = self.latent(rows).split([rank, self.latent.out_features - rank], -1)
        if self.rope_norm is not None:
            rotated = self.rope_norm.module(rotated)
        queries = self._queries(rows)
        return queries, torch.cat([self.latent_norm.module(latent) * self.latent_scale, rotated], -1)


SOURCES = "kv_source_layers"  # setting: for each layer, the one whose latents it takes
GATES = ("g_proj", "gate_proj")
NORMS = ("q_a_layernorm", "kv_a_layernorm", ROPE_NORM)
SCALE_OF_QUERIES = "mla_scale_q_lora"  # attribute: factor of queries; others are of the rows that these are made from
SCALES = ((SCALE_OF_QUERIES, "q_lora_scale"), ("mla_scale_kv_lora", "kv_lora_scale"))  # attributes


def _source_of(attention: Any) -> int:
    """Return the layer whose latents an attention without a projection of latents takes; -1 if that is not known."""
    sources = getattr(attention.config, SOURCES, None) or ()
    layer = int(attention.layer_idx)
    source = sources[layer] if layer < len(sources) else layer
    return int(source) if source < layer else -1


def _linear(module: Any, name: str) -> Linear | None:
    found = getattr(module, name, None)
    return found if isinstance(found, LINEARS) else None
