"""Low-rank additions to products by torch, and those of a step's adapters to a layer of experts."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from server.kernels.native.lora import LowRank, PartsTable

Factors = npt.NDArray[np.float32]  # (rows, adapters): factor of each adapter's addition; 0 where a row does not use it


@dataclass(frozen=True)
class ExpertTables:
    """One adapter's additions to a layer's experts, as the native kernels read them; None if it adds nothing."""

    first: PartsTable | None
    second: PartsTable | None


@dataclass(frozen=True)
class ExpertAdditions:
    """The additions of a step's adapters to the experts of a layer.

    Args:
        factors: of the rows of the layer.
        number_of: the number of an expert in ``parts`` and ``tables``, by its key.
        parts: for each adapter, its additions by expert and parameter.
        tables: the same for the native kernels; called only by a backend that uses them.
    """

    factors: Factors
    number_of: Callable[[Hashable], int]
    parts: Sequence[Mapping[tuple[int, str], Sequence[LowRank]]]
    tables: Callable[[], Sequence[ExpertTables]]

    def repeated(self, times: int) -> ExpertAdditions:
        """Return the additions for rows that are each repeated so many times."""
        return replace(self, factors=self.factors.repeat(times, axis=0))

    def add(self, key: Hashable, parameter: str, rows: npt.NDArray[np.int64], x: torch.Tensor, y: torch.Tensor) -> None:
        """Add to the output ``y`` of an expert's matrix for its input ``x``.

        Args:
            rows: the layer's row of each row of ``x``.
        """
        number = self.number_of(key)
        add_low_rank(self.factors[rows], [parts.get((number, parameter), ()) for parts in self.parts], x, y)


def add_low_rank(factors: Factors, adapters: Sequence[Sequence[LowRank]], x: torch.Tensor, y: torch.Tensor) -> None:
    """Add to ``y (rows, outputs)`` what adapters make of ``x (rows, inputs)``, grouped by adapter.

    Products are computed in the dtype of the adapter, as PEFT does.

    Args:
        adapters: the additions of each adapter to this matrix.
    """
    for column, parts in zip(factors.T, adapters, strict=True):
        used = np.flatnonzero(column)
        if not parts or not len(used):
            continue
        rows = torch.from_numpy(used).to(x.device)
        chosen = x[rows]
        for part in parts:
            down, up = part.down.to(x.device), part.up.to(x.device)
            scales = torch.from_numpy(column[used] * np.float32(part.scale)).to(x.device).unsqueeze(1)
            added = F.linear(F.linear(chosen.to(down.dtype), down), up) * scales
            outputs = slice(part.first_output, part.first_output + up.shape[0])
            y[rows, outputs] += added.to(y.dtype)
