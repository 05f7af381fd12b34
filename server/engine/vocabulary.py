"""Reductions over a vocabulary of logits, in two levels: blocks of tokens, then tokens of the blocks that matter.

A reduction of 150,000 contiguous values to a thousand is at memory speed, where torch's argmax, topk and sort over all
of them are 10 to 1,000 times slower. Each row is computed for itself: its company changes no bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch.nn import functional as F

BLOCK = 128  # tokens; vocabularies are mostly a multiple of it
LOG2_E = math.log2(math.e)
PIECE = 1 << 14  # numbers that torch gives to one thread
TILE = 1 << 18  # logits that are computed at once, so that they stay in the processor's cache


class Vocabulary:
    """Logits of some rows; methods take the rows that are meant, int64 ``(n,)``.

    Args:
        logits: float32 ``(rows, vocabulary)``.
    """

    def __init__(self, logits: torch.Tensor):
        num_rows, self.size = logits.shape
        padding = -self.size % BLOCK
        self.logits = F.pad(logits, (0, padding), value=-torch.inf) if padding else logits  # (rows, padded)
        self._blocks = self.logits.view(num_rows, self.logits.shape[-1] // BLOCK, BLOCK)
        most = self._rows_of_a_tile(self.size)
        tiles = zip(torch.split(self._blocks, most), torch.split(logits, most), strict=True)
        measures = [(blocks.amax(-1), values.amin(-1)) for blocks, values in tiles]
        self.block_maxima, self._minima = (torch.cat(parts) for parts in zip(*measures, strict=True))
        self.maxima = self.block_maxima.amax(-1)

    def are_finite(self) -> list[bool]:
        """Of each row, whether all logits that were given are, and the largest still is."""
        extremes = zip(self._minima.tolist(), self.maxima.tolist(), strict=True)
        return [math.isfinite(low) and math.isfinite(high) for low, high in extremes]

    def measure(self, rows: torch.Tensor) -> None:
        """Find the maxima anew, after logits have changed."""
        for part in self.tiles(rows):
            self.block_maxima[part] = taken(self._blocks, part).amax(-1)
        self.maxima[rows] = self.block_maxima[rows].amax(-1)

    def argmax(self, rows: torch.Tensor) -> torch.Tensor:
        """The likeliest token of each row, the first of several ``(n,)``."""
        block = self.block_maxima[rows].argmax(-1)
        return block * BLOCK + self._blocks[rows, block].argmax(-1)

    def largest(self, rows: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The ``count`` largest logits of each row, largest first, and their tokens, both ``(n, count)``.

        They lie in the ``count`` blocks of largest maxima. Which of several equal to the smallest are among them is
        not defined.
        """
        if count >= self.block_maxima.shape[-1]:
            values, tokens = self.logits[rows].topk(count, -1)
            return values, tokens
        blocks = self.block_maxima[rows].topk(count, -1).indices  # (n, count)
        values, places = self._blocks[rows[:, None], blocks].view(len(rows), -1).topk(count, -1)
        return values, blocks.gather(1, places // BLOCK) * BLOCK + places % BLOCK

    def block_weights(
        self, rows: torch.Tensor, temperatures: torch.Tensor, lowest: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The sum over each block of ``exp((logit - maximum) / temperature)``, float64 ``(n, blocks)``.

        Args:
            temperatures: ``(n,)``.
            lowest: tokens count whose ``logit / temperature`` is not below it ``(n,)``.
        """
        sums = torch.empty((len(rows), self.block_maxima.shape[-1]), dtype=torch.float64, device=rows.device)
        for part in self.tiles(torch.arange(len(rows), device=rows.device)):
            limit = None if lowest is None else lowest[part, None, None]
            highest = self.maxima[rows[part], None, None]
            weights = _weights(taken(self._blocks, rows[part]), highest, temperatures[part, None, None], limit)
            sums[part] = weights.sum(-1).double()
        return sums

    def weights_in_block(
        self, rows: torch.Tensor, block: torch.Tensor, temperatures: torch.Tensor, lowest: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What ``block_weights`` sums up of one block of each row, float64 ``(n, BLOCK)``."""
        limit = None if lowest is None else lowest[:, None]
        return _weights(self._blocks[rows, block], self.maxima[rows, None], temperatures[:, None], limit).double()

    def tiles(self, rows: torch.Tensor, width: int | None = None) -> Iterator[torch.Tensor]:
        """The rows in parts small enough for the cache, if ``width`` values of each are worked on, by default all.

        On a GPU they are one part.
        """
        most = self._rows_of_a_tile(width or self.size)
        return (rows[start : start + most] for start in range(0, len(rows), most))

    def _rows_of_a_tile(self, width: int) -> int:
        return max(1, len(self.logits) if self.logits.is_cuda else TILE // width)


def _weights(
    logits: torch.Tensor, maxima: torch.Tensor, temperatures: torch.Tensor, lowest: torch.Tensor | None
) -> torch.Tensor:
    scores = logits / temperatures
    # 1 or 0 as a number: torch fills by a mask three times slower than it multiplies.
    is_left = None if lowest is None else torch.ge(scores, lowest, out=torch.empty_like(scores))
    weights = exponentials(scores.sub_(maxima / temperatures))
    return weights if is_left is None else weights.mul_(is_left)


def taken(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Some rows, ascending; without a copy if they follow one another."""
    first, last = int(rows[0]), int(rows[-1])
    return values[first : last + 1] if last - first + 1 == len(rows) else values.index_select(0, rows)


def exponentials(values: torch.Tensor) -> torch.Tensor:
    """``exp`` in place, of a contiguous tensor of whole vectors of numbers (64 each).

    On a CPU torch's own ``exp`` is 20 to 200 times slower where the result is next to 0; and its vector and scalar code
    differ in the last bit, so no thread's share may end within a vector.
    """
    values.mul_(LOG2_E)
    for piece in [values] if values.is_cuda else torch.split(values.view(-1), PIECE):
        piece.exp2_()
    return values
