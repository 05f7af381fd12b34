"""Attention of a step's tokens over the KV cache, without copying what is in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from .flash import attend_span, band_mask, merge
from .kv_cache import KVCache, LayerCache
from .runs import Band, GroupPlan, Span, plan_group
from .seam import AttentionOptions
from .step import SequenceChunk


class StepAttention:
    """The attention of all layers in one step. What is the same for a group of layers is computed once."""

    def __init__(self, chunks: Sequence[SequenceChunk], cache: KVCache):
        self._cache = cache
        self._groups = [
            _GroupAttention(plan_group(chunks, index, group.window, cache.block_size), cache.device)
            for index, group in enumerate(cache.groups)
        ]

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        """Keep the new tokens' keys and values, and attend to all that each token sees.

        ``query (heads, tokens, key_dim)``, ``key (kv_heads, tokens, key_dim)`` and
        ``value (kv_heads, tokens, value_dim)`` give ``(tokens, heads, value_dim)``. Of a latent, ``value``
        is not looked at, and the first ``value_dim`` numbers of ``key`` are what is weighted.
        """
        return self._groups[self._cache.group_of[layer]].attend(self._cache.layers[layer], query, key, value, options)


class _GroupAttention:
    """The attention of a group of layers."""

    def __init__(self, plan: GroupPlan, device: torch.device):
        self._plan, self._device = plan, device
        self._slots = torch.tensor(plan.slots, device=device)
        self._further_rows = [
            torch.tensor([row for span in spans for row in range(span.first_row, span.first_row + span.num_rows)])
            for spans in plan.rounds[1:]
        ]
        self._masks: dict[tuple[Band, torch.dtype], torch.Tensor] = {}

    def attend(
        self, cache: LayerCache, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        shape = cache.shape
        cache.write(self._slots, key, value)
        query = _pad(query, shape.dim).unsqueeze(0)  # (1, heads, tokens, dim)
        if self._plan.has_new:
            key = _pad(key, shape.dim).unsqueeze(0)
            value = key if shape.is_latent else _pad(value, shape.dim).unsqueeze(0)
        output, lse = self._round(self._plan.rounds[0], cache, query, key, value, options)
        for spans, rows in zip(self._plan.rounds[1:], self._further_rows, strict=True):
            output = output.float()
            output[rows], lse[rows] = merge(
                output[rows], lse[rows], *self._round(spans, cache, query, key, value, options)
            )
        if options.sinks is not None:
            output = output * (lse - options.sinks.float()).sigmoid().unsqueeze(-1)
        return output[..., : shape.value_dim].to(query.dtype)

    def _round(
        self,
        spans: Sequence[Span],
        cache: LayerCache,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: AttentionOptions,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs ``(rows, heads, dim)`` and lses ``(rows, heads)`` of the spans, one after the other."""
        outputs, lses = [], []
        for span in spans:
            keys, values = (key, value) if span.is_new else (cache.keys, cache.values)
            output, lse = attend_span(
                query.narrow(2, span.first_row, span.num_rows),
                keys.narrow(2, span.start, span.length),
                values.narrow(2, span.start, span.length),
                options.scaling,
                options.softcap,
                is_causal=span.is_causal,
                mask=None if span.band is None else self._mask(span.band, query.dtype),
            )
            outputs.append(output)
            lses.append(lse)
        return torch.cat(outputs, 2)[0].transpose(0, 1), torch.cat(lses, 2)[0].transpose(0, 1)

    def _mask(self, band: Band, dtype: torch.dtype) -> torch.Tensor:
        if (band, dtype) not in self._masks:
            self._masks[band, dtype] = band_mask(band, dtype, self._device)
        return self._masks[band, dtype]


def _pad(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """Rows of at least that width, zeros at their ends."""
    return tensor if tensor.shape[-1] == dim else F.pad(tensor, (0, dim - tensor.shape[-1]))
