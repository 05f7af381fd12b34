"""SequenceCache: the cache of a module that runs one sequence, by the names of transformers' caches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch

from server.model.attention.by_sequence.token_states import TokenStates
from server.model.attention.by_sequence.view import View
from server.model.recurrent.states import RecurrentCache, StateReader

TokensOf = Callable[[int], TokenStates]  # those of a layer


class LayerStandIns:
    """Stands for the layers of transformers' cache where a model asks for them around its modules: there are none."""

    indexer_position_ids: Any = None  # a model sets those of the step

    def __len__(self) -> int:
        return 0

    def __getitem__(self, layer: int) -> Self:
        del layer
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter(())


@dataclass(frozen=True)
class _Compressed:
    """The states that a call compresses: their column and size, tokens of a period, and periods complete before."""

    column: int
    size: int
    period: int
    complete: int


class SequenceCache(RecurrentCache, LayerStandIns):
    """The states of one sequence: those of its tokens in pages, and those of recurrent modules inside of the module.

    Args:
        read: as of ``RecurrentCache``.
        view: of the module.
        periods: tokens that are compressed into one key, by layer that has such keys.
    """

    def __init__(self, read: StateReader, view: View, periods: Mapping[int, int]):
        super().__init__(read)
        self._view, self._periods = view, periods
        self.tokens: dict[int, TokenStates] = {}  # by layer, in the latest call
        self._tokens_of: TokensOf | None = None
        self._num_cached = self._layer = 0
        self._compressed: dict[str, _Compressed] = {}
        self.keys: torch.Tensor | None = None

    def begin(self, tokens_of: TokensOf, num_cached: int) -> None:
        """Begin a call of the module, with the tokens behind ``num_cached`` ones."""
        self._tokens_of, self._num_cached, self.tokens, self.keys = tokens_of, num_cached, {}, None

    @property
    def layers(self) -> Self:
        return self

    def __getitem__(self, layer: int) -> Self:
        self._layer = layer
        return self

    def keep(self, states: torch.Tensor, layer: int, oldest: int | None = None) -> torch.Tensor:
        """Keep a part of the states of new tokens (``TokenStates.keep``)."""
        return self._tokens(layer).keep(states, oldest)

    def _tokens(self, layer: int) -> TokenStates:
        if layer not in self.tokens:
            assert self._tokens_of is not None
            self.tokens[layer] = self._tokens_of(layer)
        return self.tokens[layer]

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Keep keys and values ``(1, heads, new, dim)``, and return those that the new tokens see."""
        layer = int(kwargs["layer_idx"] if "layer_idx" in kwargs else args[0])
        oldest = None if self._view.reach is None else self._view.oldest(self._num_cached)
        both = [key_states] if value_states is key_states else [key_states, value_states]
        seen = []
        for states in both:
            _, heads, _, dim = states.shape
            rows = self.keep(states.transpose(1, 2).flatten(2), layer, oldest)
            seen.append(rows.view(1, rows.shape[1], heads, dim).transpose(1, 2))
        self.keys = seen[0]
        return seen[0], seen[-1]

    def update_indexer(self, key_states: torch.Tensor, layer_idx: int) -> torch.Tensor:
        """Keep index states ``(1, new, dim)``, and return those of all tokens."""
        return self.keep(key_states, layer_idx)

    def store_compression_weights(
        self, name: str, kv: torch.Tensor, gate: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Keep what DeepSeek-V4 compresses; return that of new complete periods, and the position of the first.

        They come with the period before them, which overlaps with the first: it is compressed once more, and dropped
        (``update_compressor_states``). Without a complete period nothing is returned.
        """
        size, period = kv.shape[-1], self._periods[self._layer]
        complete, column = self._num_cached // period, self._tokens(self._layer).width
        first = max(0, complete - 1)
        self._compressed[name] = _Compressed(column, size, period, complete)
        states = self.keep(torch.cat([kv, gate], -1), self._layer, first * period)
        num_new = (self._num_cached + kv.shape[1]) // period - complete
        states = states[:, : (complete - first + num_new) * period if num_new else 0]
        return states[..., :size], states[..., size:], first * period

    def update_overlap_state(self, *_: Any) -> tuple[None, None]:
        """Return nothing: the period before the new ones is among them."""
        return None, None

    def update_compressor_states(self, name: str, compressed: torch.Tensor) -> torch.Tensor:
        """Keep the compressed keys of new periods, and return those of all, ``(1, periods, dim)``.

        A key lies in the row of the last token of its period, in place of numbers that no other period reads.
        """
        of, dim = self._compressed[name], compressed.shape[-1]
        new = compressed[:, 1:] if of.complete and compressed.shape[1] else compressed
        return self._tokens(self._layer).keep_of_periods(of.column + of.size - dim, new, of.period, of.complete)

    def get_query_offset(self, layer_idx: int = 0) -> int:
        del layer_idx
        return self._num_cached

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Return the number of keys that the new tokens see, and the position of the first."""
        del layer_idx
        oldest = self._view.oldest(self._num_cached)
        return self._num_cached + query_length - oldest, oldest

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens in the cache, with the new ones once they are."""
        del layer_idx
        return self._num_cached if self.keys is None else self._view.oldest(self._num_cached) + self.keys.shape[2]
