"""Attention of a step's tokens over the paged KV cache, without copying the cache."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from server.kernels.compute_pool import ComputePool, work_bytes
from server.kernels.triton.available import runs_on
from server.kernels.upload import upload
from server.model.attention.attention_plan import Band, Span, plan_group
from server.model.attention.chosen_attention import ChosenAttention
from server.model.attention.decode_attention import DecodeAttention
from server.model.attention.key_choice import KeyChoice
from server.model.attention.kv_cache import KVCache, LayerCache
from server.model.attention.projected import ProjectedHeads, ProjectedLatents
from server.model.attention.span_attention import attend_span, band_mask, merge
from server.model.hooks import AttentionOptions
from server.model.step import SequenceChunk

LEAST_SHARED_BYTES = 2 << 20  # least bytes of keys and values that are worth sharing among threads
TASKS_PER_THREAD = 2  # if there are more spans than threads


class StepAttention:
    """The attention of all layers in one step. The plan of a group of layers is made once.

    Args:
        num_partitions: of each group of layers, for steps that take the place of another (``update``).
    """

    def __init__(
        self,
        chunks: Sequence[SequenceChunk],
        cache: KVCache,
        pool: ComputePool,
        num_partitions: Sequence[int] | None = None,
    ):
        self._cache = cache
        self.has_kernels = runs_on(pool.triton_device)
        self.chosen = ChosenAttention(chunks, cache)
        partitions: Sequence[int | None] = num_partitions or [None] * len(cache.groups)
        self._groups = [_GroupAttention(chunks, index, cache, pool, most) for index, most in enumerate(partitions)]

    def update(self, chunks: Sequence[SequenceChunk]) -> None:
        """Take another step of as many sequences with a new token each, at the same place in the device's memory."""
        for group in self._groups:
            group.update(chunks, self._cache)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        """Write the new tokens' keys and values to the cache, and attend to the keys that each token sees.

        ``query (heads, tokens, key_dim)``, ``key (kv_heads, tokens, key_dim)`` and
        ``value (kv_heads, tokens, value_dim)`` give ``(tokens, heads, value_dim)``. The window is that of the layer's
        group. For a latent, ``value`` is ignored: the first ``value_dim`` numbers of ``key`` are the values.
        """
        if isinstance(options.chosen, KeyChoice):
            return self.chosen.attend(layer, query, key, value, options)
        return self._groups[self._cache.group_of[layer]].attend(self._cache.layers[layer], query, key, value, options)

    def attend_projected(self, layer: int, heads: ProjectedHeads, options: AttentionOptions) -> torch.Tensor:
        """Prepare the projections of the step's tokens, and attend as ``attend`` does; on a CUDA device alone."""
        return self._groups[self._cache.group_of[layer]].attend_projected(self._cache.layers[layer], heads, options)

    def attend_latents(
        self, layer: int, latents: ProjectedLatents, to_keys: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        """Prepare the projections of the step's tokens, and attend to latents; return ``(tokens, heads, rank)``.

        Args:
            to_keys: absorbs the expansion of latents into queries, ``(heads, nope_dim, rank)``.
        """
        group, cache = self._groups[self._cache.group_of[layer]], self._cache.layers[layer]
        return group.attend_latents(cache, latents, to_keys, options)


class _GroupAttention:
    """The attention of a group of layers."""

    def __init__(
        self,
        chunks: Sequence[SequenceChunk],
        group: int,
        cache: KVCache,
        pool: ComputePool,
        num_partitions: int | None = None,
    ):
        self._device, self.pool, self._index, rule = cache.device, pool, group, cache.groups[group]
        has_kernels = runs_on(pool.triton_device)
        self._plan = plan_group(
            chunks, group, rule.window, cache.block_size, rule.is_chunked, has_decodes=not has_kernels
        )
        self._decodes, self._slots = None, torch.empty(0)
        if has_kernels:
            self._decodes = DecodeAttention(chunks, group, self._plan.slots, cache, num_partitions)
        else:
            self._slots = torch.tensor(self._plan.slots, device=cache.device)
        first, *further = (_rows_of(spans) for spans in self._plan.rounds)
        self._first_rows = upload(first, cache.device) if has_kernels and len(first) else None
        self._further_rows = [upload(first.searchsorted(rows), cache.device) for rows in further]
        self._masks: dict[tuple[Band, torch.dtype], torch.Tensor] = {}

    def update(self, chunks: Sequence[SequenceChunk], cache: KVCache) -> None:
        assert self._decodes is not None
        rule = cache.groups[self._index]
        plan = plan_group(chunks, self._index, rule.window, cache.block_size, rule.is_chunked, has_decodes=False)
        self._decodes.update(chunks, self._index, plan.slots, cache)

    def attend(
        self, cache: LayerCache, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        if self._decodes is None:
            cache.write(self._slots, key, value)
            return self._attend_spans(cache, query, key, value, options)
        self._decodes.write(cache, key, value)
        output = self._decodes.attend(cache, query, options)
        if self._first_rows is not None:
            output[self._first_rows] = self._attend_spans(cache, query, key, value, options)
        return output

    def attend_projected(self, cache: LayerCache, heads: ProjectedHeads, options: AttentionOptions) -> torch.Tensor:
        assert self._decodes is not None
        has_spans = self._first_rows is not None
        query, key, value = self._decodes.prepare(cache, heads, keeps_keys=has_spans)
        output = self._decodes.attend(cache, query, options)
        if has_spans:
            output[self._first_rows] = self._attend_spans(cache, query, key, value, options)
        return output

    def attend_latents(
        self, cache: LayerCache, latents: ProjectedLatents, to_keys: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        assert self._decodes is not None
        has_spans = self._first_rows is not None
        query, rows = self._decodes.prepare_latents(cache, latents, to_keys, keeps_rows=has_spans)
        output = self._decodes.attend(cache, query, options)
        if has_spans:
            output[self._first_rows] = self._attend_spans(cache, query, rows, rows, options)
        return output

    def _attend_spans(
        self, cache: LayerCache, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        """Return the attention of the plan's spans, ``(rows of the first round, heads, value_dim)``."""
        shape = cache.shape
        query = _pad(query, shape.dim)
        if self._plan.has_new:
            key = _pad(key, shape.dim).unsqueeze(0)
            value = key if shape.is_latent else _pad(value, shape.dim).unsqueeze(0)
        results = [
            _RoundAttention(self, spans, cache, query=query, key=key, value=value, options=options)
            for spans in self._plan.rounds
        ]
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


class _RoundAttention:
    """The attention of the spans of one round in one layer.

    The query heads of single rows are stacked by key head beforehand, for all rows at once: decodes are many small
    calls, so the work for each of them counts. Where there is much to do, threads share the spans, or the key heads of
    a few long ones.
    """

    def __init__(
        self,
        group: _GroupAttention,
        spans: Sequence[Span],
        cache: LayerCache,
        *,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: AttentionOptions,
    ):
        self._group, self._spans, self._cache, self._options = group, spans, cache, options
        self._new = key, value
        self._kv_heads, self._groups = cache.shape.kv_heads, len(query) // cache.shape.kv_heads
        grouped = query.view(self._kv_heads, self._groups, query.shape[1], -1).permute(2, 0, 1, 3)
        self._rows = torch.split(grouped, 1) if any(span.num_rows == 1 for span in spans) else ()
        self._query = query.unsqueeze(0)  # (1, heads, tokens, dim)
        self._results: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}  # by span and first key head
        if group.pool.num_threads > 1 and self._num_bytes() >= LEAST_SHARED_BYTES:
            self._run_threaded()
        else:
            self._attend(range(len(spans)), 0, self._kv_heads)

    def output(self) -> torch.Tensor:
        """Return ``(rows, heads, dim)``, span after span."""
        return torch.cat([self._of_span(index, 0) for index in range(len(self._spans))]).flatten(1, 2)

    def lse(self) -> torch.Tensor:
        """Return the logarithms of sums of exponentials, ``(rows, heads)`` in float32."""
        return torch.cat([self._of_span(index, 1) for index in range(len(self._spans))]).flatten(1, 2)

    def _of_span(self, index: int, which: int) -> torch.Tensor:
        """Return a span's outputs ``(rows, kv_heads, groups, dim)`` or lses ``(rows, kv_heads, groups)``."""
        parts = [self._results[key][which] for key in sorted(self._results) if key[0] == index]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _num_bytes(self) -> float:
        """Return the bytes of work, by ``work_bytes``."""
        token_bytes = self._cache.shape.token_bytes
        return sum(work_bytes(span.length * token_bytes, span.num_rows) for span in self._spans)

    def _run_threaded(self) -> None:
        pool, spans = self._group.pool, self._spans
        if len(spans) >= pool.num_threads:
            size = -(-len(spans) // (TASKS_PER_THREAD * pool.num_threads))
            for first in range(0, len(spans), size):
                part = range(first, min(first + size, len(spans)))
                pool.start(partial(self._attend, part, 0, self._kv_heads))
        else:
            size = -(-self._kv_heads // pool.num_threads)
            for first in range(0, self._kv_heads, size):
                last = min(first + size, self._kv_heads)
                pool.start(partial(self._attend, range(len(spans)), first, last))
        pool.finish()

    def _attend(self, indices: Iterable[int], first: int, last: int) -> None:
        """Compute some of the spans, for the key heads ``first`` to ``last`` (exclusive)."""
        for index in indices:
            self._results[index, first] = self._attend_span(self._spans[index], first, last - first)

    def _attend_span(self, span: Span, first: int, num_heads: int) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self._new if span.is_new else (self._cache.keys, self._cache.values)
        keys, values = keys.narrow(2, span.start, span.length), values.narrow(2, span.start, span.length)
        if num_heads < self._kv_heads:
            keys, values = keys.narrow(1, first, num_heads), values.narrow(1, first, num_heads)
        scaling, softcap, groups = self._options.scaling, self._options.softcap, self._groups
        if span.num_rows == 1:
            row = self._rows[span.first_row]
            return attend_span(row.narrow(1, first, num_heads), keys, values, scaling, softcap)
        part = self._query.narrow(2, span.first_row, span.num_rows).narrow(1, first * groups, num_heads * groups)
        mask = self._group.mask(span.band, part.dtype)
        output, lse = attend_span(part, keys, values, scaling, softcap, is_causal=span.is_causal, mask=mask)
        shape = span.num_rows, num_heads, groups
        return output[0].transpose(0, 1).reshape(*shape, -1), lse[0].transpose(0, 1).reshape(shape)


def _rows_of(spans: Sequence[Span]) -> npt.NDArray[np.int64]:
    """Return the step's tokens that spans are of."""
    rows = [np.arange(span.first_row, span.first_row + span.num_rows) for span in spans]
    return np.concatenate(rows) if rows else np.empty(0, np.int64)


def _pad(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """Pad rows with zeros to this width."""
    return tensor if tensor.shape[-1] == dim else F.pad(tensor, (0, dim - tensor.shape[-1]))
