"""Two-level reductions over the logits of a vocabulary: over groups of tokens, then within the groups that matter.

Reducing 150,000 contiguous values to a thousand runs at memory speed, while torch's argmax, topk and sort over all of
them are 10 to 1,000 times slower. Each row is computed by itself, so the results are batch-invariant.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch.nn import functional as F

GROUP = 128  # tokens; most vocabularies are a multiple of it
LOG2_E = math.log2(math.e)
PIECE = 1 << 14  # values that torch gives to one thread
TILE = 1 << 18  # logits computed at once, so that they stay in the CPU's cache


class GroupedLogits:
    """Logits with the maxima of their groups. Methods take the rows to work on, int64 ``(n,)``.

    Args:
        logits: float32 ``(rows, vocabulary)``.
    """

    def __init__(self, logits: torch.Tensor):
        num_rows, self.size = logits.shape
        padding = -self.size % GROUP
        self.logits = F.pad(logits, (0, padding), value=-torch.inf) if padding else logits  # (rows, padded)
        self._groups = self.logits.view(num_rows, self.logits.shape[-1] // GROUP, GROUP)
        most = self._rows_of_a_tile(self.size)
        tiles = zip(torch.split(self._groups, most), torch.split(logits, most), strict=True)
        measures = [(groups.amax(-1), values.amin(-1)) for groups, values in tiles]
        self.group_maxima, self._minima = (torch.cat(parts) for parts in zip(*measures, strict=True))
        self.maxima = self.group_maxima.amax(-1)

    def are_finite(self) -> list[bool]:
        """Return for each row whether its original logits and its current maximum are finite."""
        extremes = torch.stack([self._minima, self.maxima], 1).tolist()  # one wait for a device
        return [math.isfinite(low) and math.isfinite(high) for low, high in extremes]

    def measure(self, rows: torch.Tensor) -> None:
        """Update the maxima of rows whose logits have changed."""
        for part in self.tiles(rows):
            self.group_maxima[part] = select_rows(self._groups, part).amax(-1)
        self.maxima[rows] = self.group_maxima[rows].amax(-1)

    def argmax(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the most likely token of each row, the first of equal ones, ``(n,)``."""
        group = self.group_maxima[rows].argmax(-1)
        return group * GROUP + self._groups[rows, group].argmax(-1)

    def largest(self, rows: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the ``count`` largest logits of each row in descending order, and their tokens, both ``(n, count)``.

        They lie in the ``count`` groups with the largest maxima. Ties with the smallest of them are broken arbitrarily.
        """
        if count >= self.group_maxima.shape[-1]:
            values, tokens = self.logits[rows].topk(count, -1)
            return values, tokens
        groups = self.group_maxima[rows].topk(count, -1).indices  # (n, count)
        values, places = self._groups[rows[:, None], groups].view(len(rows), -1).topk(count, -1)
        return values, groups.gather(1, places // GROUP) * GROUP + places % GROUP

    def group_weights(
        self, rows: torch.Tensor, temperatures: torch.Tensor, lowest: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the sum over each group of ``exp((logit - maximum) / temperature)``, float64 ``(n, groups)``.

        Args:
            temperatures: ``(n,)``.
            lowest: tokens whose ``logit / temperature`` is below it do not count, ``(n,)``.
        """
        sums = torch.empty((len(rows), self.group_maxima.shape[-1]), dtype=torch.float64, device=rows.device)
        for part in self.tiles(torch.arange(len(rows), device=rows.device)):
            limit = None if lowest is None else lowest[part, None, None]
            highest = self.maxima[rows[part], None, None]
            weights = _weights(select_rows(self._groups, rows[part]), highest, temperatures[part, None, None], limit)
            sums[part] = weights.sum(-1).double()
        return sums

    def weights_in_group(
        self, rows: torch.Tensor, group: torch.Tensor, temperatures: torch.Tensor, lowest: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the addends of ``group_weights`` in one group of each row, float64 ``(n, GROUP)``."""
        limit = None if lowest is None else lowest[:, None]
        return _weights(self._groups[rows, group], self.maxima[rows, None], temperatures[:, None], limit).double()

    def tiles(self, rows: torch.Tensor, width: int | None = None) -> Iterator[torch.Tensor]:
        """Split rows into parts that fit the CPU's cache; on a GPU there is one part.

        Args:
            width: values of a row that are computed, by default all.
        """
        most = self._rows_of_a_tile(width or self.size)
        return (rows[start : start + most] for start in range(0, len(rows), most))

    def _rows_of_a_tile(self, width: int) -> int:
        return max(1, len(self.logits) if self.logits.is_cuda else TILE // width)


def _weights(
    logits: torch.Tensor, maxima: torch.Tensor, temperatures: torch.Tensor, lowest: torch.Tensor | None
) -> torch.Tensor:
    scores = logits / temperatures
    # 1 or 0 as a number: torch multiplies three times faster than it fills by a mask.
    is_left = None if lowest is None else torch.ge(scores, lowest, out=torch.empty_like(scores))
    weights = exponentials(scores.sub_(maxima / temperatures))
    return weights if is_left is None else weights.mul_(is_left)


def select_rows(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return some rows in ascending order; on the CPU without a copy if they are contiguous."""
    if values.is_cuda:  # looking at them would be a wait
        return values.index_select(0, rows)
    first, last = int(rows[0]), int(rows[-1])
    return values[first : last + 1] if last - first + 1 == len(rows) else values.index_select(0, rows)


def exponentials(values: torch.Tensor) -> torch.Tensor:
    """Compute ``exp`` in place, for a contiguous tensor whose size is a multiple of 64.

    On a CPU torch's own ``exp`` is 20 to 200 times slower if the result is close to 0. Its vector and scalar code
    differ in the last bit, so no thread's share may end within a vector.
    """
    values.mul_(LOG2_E)
    for piece in [values] if values.is_cuda else torch.split(values.view(-1), PIECE):
        piece.exp2_()
    return values
