"""ChosenAttention: the attention of a step's tokens to the keys that indexers choose, over the paged KV cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import torch
from torch.nn import functional as F

from server.model.attention.attention_plan import slot_ranges
from server.model.attention.key_choice import MASK, IndexerCall, KeyChoice, causal_mask
from server.model.attention.kv_cache import KVCache, LayerCache
from server.model.attention.span_attention import attend_span_reference
from server.model.hooks import AttentionOptions
from server.model.step import SequenceChunk

TOKEN_MASK = 2  # dimensions of a mask of tokens alone
MOST_SCORES = 1 << 18  # scores of one head that are computed at once, which bounds their memory


class ChosenAttention:
    """Runs indexers and the attention to what they choose, sequence by sequence."""

    def __init__(self, chunks: Sequence[SequenceChunk], cache: KVCache):
        self._chunks, self._cache = chunks, cache
        self.rows_now: torch.Tensor | None = None  # tokens of the step that the running indexer sees
        self._rows = [*pairwise([0, *accumulate(chunk.num_tokens for chunk in chunks)])]
        self._slots: dict[int, list[torch.Tensor]] = {}  # by group of layers, those of each sequence's tokens

    def choose_keys(self, call: IndexerCall) -> KeyChoice:
        """Return the keys that the indexer of a layer chooses for each sequence, and keep its states of new tokens."""
        every = zip(self._chunks, self._rows, self._slots_of(call.layer), strict=True)
        try:
            return KeyChoice([self._choose(call, chunk.num_cached, rows, slots) for chunk, rows, slots in every])
        finally:
            self.rows_now = None

    def _choose(self, call: IndexerCall, num_cached: int, rows: tuple[int, int], slots: torch.Tensor) -> torch.Tensor:
        """Return the keys that the indexer chooses for one sequence, as a mask.

        Args:
            num_cached: tokens of the sequence before those of the step.
            rows: the first of the sequence in the step, and the one after its last.
            slots: of all its tokens.
        """
        masks = []
        for first, end in _pieces(rows[1] - rows[0], len(slots)):
            before, seen = num_cached + first, slots[: num_cached + end]
            changes = call.rows(rows[0] + first, rows[0] + end)
            if MASK in changes and changes[MASK].ndim > TOKEN_MASK:
                changes[MASK] = causal_mask(end - first, before, len(seen), slots.device).unsqueeze(0)
            self.rows_now = torch.arange(rows[0] + first, rows[0] + end)
            chosen = call.run(_PagedStates(self._cache.layers[call.layer], seen, before), changes)
            masks.append(F.pad(call.mask_of(chosen, before, len(seen)), (0, len(slots) - len(seen))))
        return torch.cat(masks, 1)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        """Write the new tokens' keys and values to the cache, and attend to chosen ones (``StepAttention.attend``).

        Args:
            options: with a ``KeyChoice``.
        """
        choice: KeyChoice = options.chosen
        cache, slots, outputs = self._cache.layers[layer], self._slots_of(layer), []
        new = [of[chunk.num_cached :] for chunk, of in zip(self._chunks, slots, strict=True)]
        cache.write(torch.cat(new), key, value)
        for (first, last), of, mask in zip(self._rows, slots, choice.masks, strict=True):
            for begin, end in _pieces(last - first, len(of)):
                rows = query[:, first + begin : first + end]
                outputs.append(_attend(cache, rows, of, mask[:, begin:end], options))
        return torch.cat(outputs)

    def _slots_of(self, layer: int) -> list[torch.Tensor]:
        """Return the slots of all tokens of each sequence, cached and new ones."""
        group = self._cache.group_of[layer]
        if group not in self._slots:
            self._slots[group] = [self._slots_of_chunk(chunk, group) for chunk in self._chunks]
        return self._slots[group]

    def _slots_of_chunk(self, chunk: SequenceChunk, group: int) -> torch.Tensor:
        end = chunk.num_cached + chunk.num_tokens
        ranges = slot_ranges(chunk.block_tables[group], self._cache.block_size, 0, end)
        return torch.cat([torch.arange(start, start + length, device=self._cache.device) for start, length in ranges])


class _PagedStates:
    """The index states of one sequence in the KV cache.

    Args:
        slots: of all its tokens.
        num_cached: tokens whose states are there.
    """

    def __init__(self, cache: LayerCache, slots: torch.Tensor, num_cached: int):
        self._cache, self._slots, self._num_cached = cache, slots, num_cached

    def update_indexer(self, states: torch.Tensor, layer: int | None = None) -> torch.Tensor:
        del layer
        index = self._cache.index
        if index is None:
            raise ValueError("a layer keeps index states that its first pass did not show")
        index[0, 0].index_copy_(0, self._slots[self._num_cached :], states[0].to(index.dtype))
        return index[0, 0].index_select(0, self._slots).unsqueeze(0)


def _pieces(num_tokens: int, num_keys: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of the new tokens of a sequence whose scores are computed at once."""
    size = max(1, MOST_SCORES // num_keys)
    for first in range(0, num_tokens, size):
        yield first, min(first + size, num_tokens)


def _attend(
    cache: LayerCache, query: torch.Tensor, slots: torch.Tensor, mask: torch.Tensor, options: AttentionOptions
) -> torch.Tensor:
    """Attend to chosen keys of a sequence: ``(heads, tokens, dim)`` to ``(tokens, heads, value_dim)``.

    Args:
        slots: of the sequence's tokens.
        mask: of them, ``(1 or kv_heads, tokens, keys)``.
    """
    shape = cache.shape
    if mask.shape[:2] == (1, 1):  # only chosen keys are read
        slots, added = slots[mask[0, 0]], None
    else:
        added = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf).unsqueeze(1)
    keys = cache.keys[..., : shape.key_dim].index_select(2, slots)
    values = keys if shape.is_latent else cache.values.index_select(2, slots)
    output, lse = attend_span_reference(
        query.unsqueeze(0), keys, values[..., : shape.value_dim], options.scaling, options.softcap, mask=added
    )
    if options.sinks is not None:
        output = output * (lse - options.sinks.float()[:, None]).sigmoid().unsqueeze(-1).to(output.dtype)
    return output[0].transpose(0, 1)
