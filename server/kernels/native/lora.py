"""Describes low-rank additions to the native kernels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ctypes import Array, addressof, sizeof
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from server.kernels.native.slot_format import PLAIN
from server.kernels.native.structures.adapters import LoraPart, LoraParts


class LowRank(Protocol):
    """A low-rank addition to some neighbouring outputs of a matrix: ``scale * (x @ down.T) @ up.T``."""

    @property
    def down(self) -> torch.Tensor:
        """``(rank, inputs)``."""

    @property
    def up(self) -> torch.Tensor:
        """``(outputs, rank)``; columns that are contiguous are the faster order."""

    @property
    def scale(self) -> float: ...

    @property
    def first_output(self) -> int: ...


@dataclass(frozen=True)
class PartsTable:
    """The additions of one adapter to several matrices, such as those of the experts of a layer.

    Args:
        parts: ``LoraParts``, one for each matrix.
        rows: ``LoraPart``, one for each addition, matrix after matrix.
        keeps: owners of the memory that it refers to.
    """

    parts: Array[Any]
    rows: Array[Any]
    keeps: Sequence[object]

    @classmethod
    def of(cls, matrices: Iterable[Sequence[tuple[LowRank, int]]]) -> PartsTable:
        """Describe the additions to each matrix.

        Args:
            matrices: for each matrix its additions, and the output that their first outputs are counted from.
        """
        found = [list(parts) for parts in matrices]
        rows = (LoraPart * sum(map(len, found)))()
        table = (LoraParts * len(found))()
        keeps: list[object] = []
        address, place = addressof(rows), 0
        for entry, parts in zip(table, found, strict=True):
            entry.parts, entry.count = address + place * sizeof(LoraPart), len(parts)
            for part, offset in parts:
                keeps += _describe(rows[place], part, offset)
                place += 1
        return cls(table, rows, keeps)

    @property
    def address(self) -> int:
        return addressof(self.parts)


def _describe(row: Any, part: LowRank, offset: int) -> list[torch.Tensor]:
    """Fill a row of a table; returns the tensors whose memory it refers to."""
    down, up = part.down.contiguous(), part.up
    row.is_transposed = int(up.mT.is_contiguous() and not up.is_contiguous())
    up = up if row.is_transposed else up.contiguous()
    row.down, row.up = down.data_ptr(), up.data_ptr()
    row.rank, row.inputs = down.shape
    row.outputs, row.first_output = up.shape[0], offset + part.first_output
    row.format, row.scale = PLAIN[down.dtype], part.scale
    return [down, up]


def addresses(tables: Iterable[PartsTable | None]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Return the address of each table, 0 for None."""
    return np.array([0 if table is None else table.address for table in tables], dtype=np.uint64)
