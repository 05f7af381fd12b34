"""DecodeAttention: a step's cache writes, and attention of its single new tokens, by Triton on a CUDA device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from server.model.attention.kv_cache import KVCache, LayerCache
from server.model.attention.projected import ProjectedHeads, ProjectedLatents
from server.model.attention.window import oldest_seen
from server.model.hooks import AttentionOptions
from server.model.step import SequenceChunk

if TYPE_CHECKING:
    from server.kernels.triton.decode_attention import DecodeRow, PagedKeys


class DecodeAttention:
    """The attention of a group of layers in one step, to all sequences' keys in one launch or two.

    Args:
        group: of the layers.
        slots: of the cache for the keys of the step's tokens.
        num_partitions: see ``PagedStep``.
    """

    def __init__(
        self,
        chunks: Sequence[SequenceChunk],
        group: int,
        slots: Sequence[int],
        cache: KVCache,
        num_partitions: int | None = None,
    ):
        from server.kernels.triton.decode_attention import PagedStep  # noqa: PLC0415  may not be installed

        rows = decode_rows(chunks, group, cache)
        self.has_rows = bool(rows)
        self._step = PagedStep(slots, rows, cache.block_size, cache.device, num_partitions)

    def update(self, chunks: Sequence[SequenceChunk], group: int, slots: Sequence[int], cache: KVCache) -> None:
        """Take another step of as many sequences with a new token each; see ``PagedStep.update``."""
        self._step.update(slots, decode_rows(chunks, group, cache))

    def write(self, cache: LayerCache, key: torch.Tensor, value: torch.Tensor) -> None:
        """See ``LayerCache.write``; the slots are the step's."""
        self._step.write(key, value, _paged_keys(cache))

    def prepare(
        self, cache: LayerCache, heads: ProjectedHeads, *, keeps_keys: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Write the step's keys and values to the cache; see ``ProjectedHeads.prepare``."""
        return heads.prepare(self._step.slots, _paged_keys(cache), keeps_keys=keeps_keys)

    def prepare_latents(
        self, cache: LayerCache, latents: ProjectedLatents, to_keys: torch.Tensor, *, keeps_rows: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the step's latents to the cache; see ``ProjectedLatents.prepare``."""
        return latents.prepare(self._step.slots, _paged_keys(cache), to_keys, keeps_rows=keeps_rows)

    def attend(self, cache: LayerCache, query: torch.Tensor, options: AttentionOptions) -> torch.Tensor:
        """Return ``(tokens, heads, value_dim)``, of which the rows of single new tokens are computed."""
        output = query.new_empty(query.shape[1], len(query), cache.shape.value_dim)
        if self.has_rows:
            self._step.attend(
                query,
                _paged_keys(cache),
                output,
                scaling=options.scaling,
                softcap=options.softcap,
                sinks=options.sinks,
            )
        return output


def decode_rows(chunks: Sequence[SequenceChunk], group: int, cache: KVCache) -> list[DecodeRow]:
    """Return the single new tokens of a step, with what they see in a group of layers."""
    from server.kernels.triton.decode_attention import DecodeRow  # noqa: PLC0415  may not be installed

    rule, rows, token = cache.groups[group], [], 0
    for chunk in chunks:
        if chunk.num_tokens == 1:
            position = chunk.num_cached
            oldest = 0 if rule.window is None else max(0, oldest_seen(position, rule.window, rule.is_chunked))
            rows.append(DecodeRow(token, oldest, position + 1, chunk.block_tables[group]))
        token += chunk.num_tokens
    return rows


def _paged_keys(cache: LayerCache) -> PagedKeys:
    from server.kernels.triton.decode_attention import PagedKeys  # noqa: PLC0415  as above

    shape = cache.shape
    return PagedKeys(cache.keys[0], cache.values[0], shape.key_dim, shape.value_dim, shape.is_latent)
