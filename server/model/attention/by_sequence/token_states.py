"""TokenStates: what a layer keeps of each token of one sequence, such as its key, its value and an index key."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from server.model.attention.kv_cache import LayerCache


class TokenStates(ABC):
    """The states of a sequence's tokens in one layer, in one call of its module.

    A token has one row. The parts of it lie there in the order in which a call keeps them, which is that of every call.

    Args:
        num_cached: tokens whose states are there.
    """

    def __init__(self, num_cached: int):
        self.num_cached = num_cached
        self.width = 0  # numbers of a token that this call has kept
        self.reads_all = False  # whether some part is read for all tokens, whatever the window of attention

    def keep(self, states: torch.Tensor, oldest: int | None = None) -> torch.Tensor:
        """Keep a part of the states of new tokens, and return that of all tokens from a position on.

        Args:
            states: ``(1, new, dim)``.
            oldest: the first position to return, which moves with a window; None for all tokens, always.

        Returns:
            ``(1, tokens, dim)``.
        """
        self.reads_all |= oldest is None
        if not states.shape[-1]:
            return states.new_zeros((1, self.num_cached + states.shape[1] - (oldest or 0), 0))
        column, self.width = self.width, self.width + states.shape[-1]
        return self._exchange(column, states[0], oldest or 0).to(states.dtype).unsqueeze(0)

    @abstractmethod
    def _exchange(self, column: int, states: torch.Tensor, oldest: int) -> torch.Tensor:
        """Write ``(new, dim)`` from a column on; return the rows from ``oldest`` on, ``(tokens, dim)``."""


class PagedTokens(TokenStates):
    """Token states in the KV cache.

    Args:
        slots: of the sequence's tokens from ``first`` on, new ones included.
        first: position of the first of them.
    """

    def __init__(self, cache: LayerCache, slots: torch.Tensor, first: int, num_cached: int):
        super().__init__(num_cached)
        self._rows, self._slots, self._first = cache.keys[0, 0], slots, first

    def _exchange(self, column: int, states: torch.Tensor, oldest: int) -> torch.Tensor:
        part = self._rows.narrow(1, column, states.shape[-1])
        part.index_copy_(0, self._slots[self.num_cached - self._first :], states.to(part.dtype))
        return part.index_select(0, self._slots[oldest - self._first :])


class ProbedTokens(TokenStates):
    """Token states in memory of their own, which show what a module keeps.

    Args:
        parts: of the tokens before, by column.
    """

    def __init__(self, parts: dict[int, torch.Tensor], num_cached: int):
        super().__init__(num_cached)
        self.parts = parts

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that holds all parts."""
        found = torch.bool
        for part in self.parts.values():
            found = torch.promote_types(found, part.dtype)
        return found

    def _exchange(self, column: int, states: torch.Tensor, oldest: int) -> torch.Tensor:
        before = self.parts.get(column, states)[: self.num_cached]
        self.parts[column] = torch.cat([before, states])
        return self.parts[column][oldest:]
