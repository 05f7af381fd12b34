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
        self.block_maxima = torch.empty(self._blocks.shape[:2], device=logits.device)
        self.maxima = torch.empty(num_rows, device=logits.device)
        self.is_finite = torch.empty(num_rows, dtype=torch.bool, device=logits.device)
        for rows in self.tiles(torch.arange(num_rows, device=logits.device)):
            self.measure(rows)
            lowest = taken(logits, rows).amin(-1)
            self.is_finite[rows] = self.maxima[rows].isfinite() & lowest.isfinite()

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
        step = len(rows) if rows.is_cuda else max(1, TILE // (width or self.size))
        return (rows[start : start + step] for start in range(0, len(rows), max(1, step)))


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
    """``exp`` in place; torch's own is 20 to 200 times slower on a CPU where the result is next to 0."""
    return values.mul_(LOG2_E).exp2_()
