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
        ``value (kv_heads, tokens, value_dim)`` give ``(tokens, heads, value_dim)``. The window is the layer's group's.
        Of a latent, ``value`` is not looked at: what is weighted is the first ``value_dim`` numbers of ``key``.
        """
        return self._groups[self._cache.group_of[layer]].attend(self._cache.layers[layer], query, key, value, options)


class _GroupAttention:
    """The attention of a group of layers."""

    def __init__(self, plan: GroupPlan, device: torch.device):
        self._plan, self._device = plan, device
        self._slots = torch.tensor(plan.slots, device=device)
        self._further_rows = [
            torch.tensor(
                [row for span in spans for row in range(span.first_row, span.first_row + span.num_rows)], device=device
            )
            for spans in plan.rounds[1:]
        ]
        self._masks: dict[tuple[Band, torch.dtype], torch.Tensor] = {}

    def attend(
        self, cache: LayerCache, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        shape = cache.shape
        cache.write(self._slots, key, value)
        query = _pad(query, shape.dim)
        if self._plan.has_new:
            key = _pad(key, shape.dim).unsqueeze(0)
            value = key if shape.is_latent else _pad(value, shape.dim).unsqueeze(0)
        results = [_Round(self, spans, cache, query, key, value, options) for spans in self._plan.rounds]
        output = results[0].output()  # (tokens, heads, dim)
        if len(results) > 1 or options.sinks is not None:
            output, lse = output.float(), results[0].lse()
            for further, rows in zip(results[1:], self._further_rows, strict=True):
                output[rows], lse[rows] = merge(output[rows], lse[rows], further.output(), further.lse())
            if options.sinks is not None:
                output *= (lse - options.sinks.float()).sigmoid().unsqueeze(-1)
        return output[..., : shape.value_dim].to(query.dtype)

    def mask(self, band: Band | None, dtype: torch.dtype) -> torch.Tensor | None:
        if band is None:
            return None
        if (band, dtype) not in self._masks:
            self._masks[band, dtype] = band_mask(band, dtype, self._device)
        return self._masks[band, dtype]


class _Round:
    """What the spans of one round give in one layer.

    A single row's query heads are put under each other by their key heads beforehand, for all rows at once: decodes
    are many small calls, and what is done for each of them counts.
    """

    def __init__(
        self,
        group: _GroupAttention,
        spans: Sequence[Span],
        cache: LayerCache,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: AttentionOptions,
    ):
        self._outputs: list[torch.Tensor] = []  # each (rows, kv_heads, groups, dim)
        self._lses: list[torch.Tensor] = []  # each (rows, kv_heads, groups)
        kv_heads, tokens = cache.shape.kv_heads, query.shape[1]
        groups = len(query) // kv_heads
        grouped = query.view(kv_heads, groups, tokens, -1).permute(2, 0, 1, 3)
        rows = torch.split(grouped, 1) if any(span.num_rows == 1 for span in spans) else ()
        whole = query.unsqueeze(0)
        scaling, softcap = options.scaling, options.softcap
        for span in spans:
            keys, values = (key, value) if span.is_new else (cache.keys, cache.values)
            keys, values = keys.narrow(2, span.start, span.length), values.narrow(2, span.start, span.length)
            if span.num_rows == 1:
                output, lse = attend_span(rows[span.first_row], keys, values, scaling, softcap)
            else:
                part = whole if span.num_rows == tokens else whole.narrow(2, span.first_row, span.num_rows)
                mask = group.mask(span.band, query.dtype)
                output, lse = attend_span(part, keys, values, scaling, softcap, is_causal=span.is_causal, mask=mask)
                output = output[0].transpose(0, 1).view(span.num_rows, kv_heads, groups, -1)
                lse = lse[0].transpose(0, 1).view(span.num_rows, kv_heads, groups)
            self._outputs.append(output)
            self._lses.append(lse)

    def output(self) -> torch.Tensor:
        """``(rows, heads, dim)``, span after span."""
        return torch.cat(self._outputs).flatten(1, 2)

    def lse(self) -> torch.Tensor:
        """``(rows, heads)``, in float32."""
        return torch.cat(self._lses).flatten(1, 2)


def _pad(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """Rows of that width, zeros at their ends."""
    return tensor if tensor.shape[-1] == dim else F.pad(tensor, (0, dim - tensor.shape[-1]))
