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
        last = self.num_cached + states.shape[1]
        self._write(column, states[0], slice(self.num_cached, last))
        return self._read(column, states.shape[-1], slice(oldest or 0, last)).to(states.dtype).unsqueeze(0)

    def keep_of_periods(self, column: int, states: torch.Tensor, period: int, first: int) -> torch.Tensor:
        """Keep states of complete periods of tokens, in the place of some of the last token's, and return those of all.

        Args:
            column: of those that they replace.
            states: of the new periods, ``(1, new, dim)``.
            period: tokens of each.
            first: number of the first new one.

        Returns:
            ``(1, periods, dim)``.
        """
        self.reads_all = True
        last = (first + states.shape[1]) * period
        self._write(column, states[0], slice((first + 1) * period - 1, last, period))
        return self._read(column, states.shape[-1], slice(period - 1, last, period)).to(states.dtype).unsqueeze(0)

    @abstractmethod
    def _write(self, column: int, states: torch.Tensor, positions: slice) -> None:
        """Write ``(tokens, dim)`` from a column on."""

    @abstractmethod
    def _read(self, column: int, dim: int, positions: slice) -> torch.Tensor:
        """Return ``(tokens, dim)`` from a column on."""


class PagedTokens(TokenStates):
    """Token states in the KV cache.

    Args:
        slots: of the sequence's tokens from ``first`` on, new ones included.
        first: position of the first of them.
    """

    def __init__(self, cache: LayerCache, slots: torch.Tensor, first: int, num_cached: int):
        super().__init__(num_cached)
        self._rows, self._slots, self._first = cache.keys[0, 0], slots, first

    def _write(self, column: int, states: torch.Tensor, positions: slice) -> None:
        part = self._rows.narrow(1, column, states.shape[-1])
        part.index_copy_(0, self._slots_of(positions), states.to(part.dtype))

    def _read(self, column: int, dim: int, positions: slice) -> torch.Tensor:
        return self._rows.narrow(1, column, dim).index_select(0, self._slots_of(positions))

    def _slots_of(self, positions: slice) -> torch.Tensor:
        return self._slots[positions.start - self._first : positions.stop - self._first : positions.step]


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

    def _write(self, column: int, states: torch.Tensor, positions: slice) -> None:
        if positions.step is None:
            before = self.parts.get(column, states)[: self.num_cached]
            self.parts[column] = torch.cat([before, states])
        else:
            self._part(column, states.shape[-1])[positions] = states

    def _read(self, column: int, dim: int, positions: slice) -> torch.Tensor:
        return self._part(column, dim)[positions]

    def _part(self, column: int, dim: int) -> torch.Tensor:
        first = max(each for each in self.parts if each <= column)
        return self.parts[first].narrow(1, column - first, dim)
