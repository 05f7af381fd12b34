"""Sizes of a grammar's lexer: limits of llguidance, and the memory that a lexer within them takes at most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import llguidance

FUEL_PER_CHARACTER = 8  # of a grammar's text; schemas need less than one


@dataclass(frozen=True)
class LexerSize:
    """Limits of a lexer.

    Args:
        fuel: work for compiling it, in llguidance's unit, beside that for the length of its text.
        more_bytes: memory that it takes at most, beyond that of the least size; measured in
            benchmarks/results/2026-11-28-epyc/memory-of-requests.json.
    """

    num_states: int
    fuel: int
    more_bytes: int

    def limits(self, num_characters: int) -> llguidance.LLParserLimits:
        # A mask is computed on the engine's thread; with llguidance's other limits it takes about 20 ms at most.
        return llguidance.LLParserLimits(
            max_items_in_row=10_000,
            max_lexer_states=self.num_states,
            initial_lexer_fuel=self.fuel + FUEL_PER_CHARACTER * num_characters,
            verbose_errors=False,
        )


# Usual grammars stay within the least.
SIZES = (
    LexerSize(1_000, 30_000, 0),
    LexerSize(6_000, 100_000, 8 << 20),
    LexerSize(50_000, 1_000_000, 64 << 20),
)


def always(nbytes: int) -> bool:
    """Grant any memory."""
    del nbytes
    return True


class GrowingSize:
    """The size of one grammar's lexer, which grows when it is too small and there is memory.

    Args:
        hold: takes so many bytes for as long as the grammar exists, and returns False if there are not so many.
    """

    def __init__(self, hold: Callable[[int], bool]):
        self._hold, self._number = hold, 0

    @property
    def current(self) -> LexerSize:
        return SIZES[self._number]

    def grow(self) -> bool:
        """Take memory for the next size; False if this is the largest, or the memory is not there."""
        if self._number + 1 == len(SIZES):
            return False
        if not self._hold(SIZES[self._number + 1].more_bytes - self.current.more_bytes):
            return False
        self._number += 1
        return True
