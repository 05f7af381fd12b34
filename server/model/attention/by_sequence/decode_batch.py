"""Single new tokens of several sequences, which an attention module takes in one call.

The keys that they see differ in number. All have as many rows, of which the last ones are a sequence's own: so the
distances from the new tokens back to their keys are those of one sequence. A mask hides the rows before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from server.model.attention.kv_cache import LayerCache
from server.model.recurrent.states import RecurrentCache, StateReader, UnsupportedCacheError

MOST_ROWS = 1 << 14  # keys of a call in one layer, which bounds the memory of their copies


class BatchTokens(ABC):
    """The states of several sequences' tokens in one layer, in one call of its module with a new token of each.

    The parts of a row lie there in the order in which a call keeps them (``TokenStates``).
    """

    def __init__(self) -> None:
        self._width = 0  # numbers of a token that this call has kept

    def keep(self, states: torch.Tensor) -> torch.Tensor:
        """Keep a part of the states of new tokens, and return that of all tokens that they see.

        Args:
            states: ``(sequences, 1, dim)``.

        Returns:
            ``(sequences, keys, dim)``, the last rows of each sequence.
        """
        column, self._width = self._width, self._width + states.shape[-1]
        return self._keep(column, states[:, 0]).to(states.dtype)

    @abstractmethod
    def _keep(self, column: int, states: torch.Tensor) -> torch.Tensor:
        """Keep ``(sequences, dim)`` from a column on, and return ``(sequences, keys, dim)`` from there."""


class PagedBatch(BatchTokens):
    """Token states in the KV cache.

    Args:
        slots: ``(sequences, keys)`` of the tokens that the new ones see, these last; any before the oldest.
    """

    def __init__(self, cache: LayerCache, slots: torch.Tensor):
        super().__init__()
        self._rows, self._slots = cache.keys[0, 0], slots

    def _keep(self, column: int, states: torch.Tensor) -> torch.Tensor:
        part = self._rows.narrow(1, column, states.shape[-1])
        part.index_copy_(0, self._slots[:, -1], states.to(part.dtype))
        return part.index_select(0, self._slots.flatten()).view(*self._slots.shape, -1)


class ProbedBatch(BatchTokens):
    """Token states in memory of their own.

    Args:
        parts: of the tokens before, by column, for each sequence.
        counts: tokens that each new one sees, its own included.
    """

    def __init__(self, parts: Sequence[dict[int, torch.Tensor]], counts: Sequence[int]):
        super().__init__()
        self._parts, self._counts = parts, counts

    def _keep(self, column: int, states: torch.Tensor) -> torch.Tensor:
        seen = []
        for parts, count, state in zip(self._parts, self._counts, states, strict=True):
            rows = torch.cat([parts[column], state[None]])[-count:]
            seen.append(F.pad(rows, (0, 0, max(self._counts) - count, 0)))
        return torch.stack(seen)


TokensOfBatch = Callable[[int], BatchTokens]  # those of a layer


class BatchCache(RecurrentCache):
    """The states of several sequences in one call with a new token of each, by the names of transformers' caches.

    A module that asks for positions, which differ, can't run so.

    Args:
        read: as of ``RecurrentCache``.
        tokens_of: returns the token states of a layer.
    """

    def __init__(self, read: StateReader, tokens_of: TokensOfBatch):
        super().__init__(read)
        self._tokens_of = tokens_of
        self._tokens: dict[int, BatchTokens] = {}

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Keep keys and values ``(sequences, heads, 1, dim)``, and return those that the new tokens see."""
        layer = int(kwargs["layer_idx"] if "layer_idx" in kwargs else args[0])
        if layer not in self._tokens:
            self._tokens[layer] = self._tokens_of(layer)
        both = [key_states] if value_states is key_states else [key_states, value_states]
        seen = []
        for states in both:
            count, heads, _, dim = states.shape
            rows = self._tokens[layer].keep(states.transpose(1, 2).flatten(2))
            seen.append(rows.view(count, rows.shape[1], heads, dim).transpose(1, 2))
        return seen[0], seen[-1]

    def get_query_offset(self, layer_idx: int = 0) -> int:
        raise UnsupportedCacheError(f"layer {layer_idx} asks for the position of a batch")

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        raise UnsupportedCacheError(f"layer {layer_idx} asks for the positions of {query_length} keys of a batch")

    def get_seq_length(self, layer_idx: int = 0) -> int:
        raise UnsupportedCacheError(f"layer {layer_idx} asks for the length of a batch")

    def update_indexer(self, key_states: torch.Tensor, layer_idx: int) -> torch.Tensor:
        raise UnsupportedCacheError(f"layer {layer_idx} keeps index keys of shape {tuple(key_states.shape)}")


def seen_rows(counts: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return which rows are keys that a sequence's new token sees, bool ``(sequences, 1, keys)``.

    Args:
        counts: of such keys, by sequence.
    """
    distances = torch.arange(max(counts) - 1, -1, -1, device=device)
    return (distances < torch.tensor(counts, device=device)[:, None]).unsqueeze(1)


def batches_of(counts: Sequence[int]) -> Iterator[list[int]]:
    """Yield the numbers of sequences that run together, in order.

    Args:
        counts: of keys that the new token of each sequence sees.
    """
    batch: list[int] = []
    for number, count in enumerate(counts):
        most = max(count, *(counts[each] for each in batch)) if batch else count
        if batch and most * (len(batch) + 1) > MOST_ROWS:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
