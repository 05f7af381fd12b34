"""Describes low-rank additions to the native kernels: ctypes mirrors of the structures in ``src/adapters/lora.h``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ctypes import Array, Structure, addressof, c_float, c_int32, c_int64, c_void_p, sizeof
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from server.kernels.native.slot_format import PLAIN


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


class LoraPart(Structure):
    _fields_ = [
        ("down", c_void_p),
        ("up", c_void_p),
        ("rank", c_int64),
        ("inputs", c_int64),
        ("outputs", c_int64),
        ("first_output", c_int64),
        ("format", c_int32),
        ("is_transposed", c_int32),
        ("scale", c_float),
        ("module", c_int32),
        ("vector", c_void_p),
    ]


class LoraParts(Structure):
    _fields_ = [("parts", c_void_p), ("count", c_int64)]


LINEARS = ("query", "key", "value", "output", "router", "dense_first", "dense_second", "dense_gate")


class LoraLayer(Structure):
    _fields_ = [*((name, LoraParts) for name in LINEARS), ("first", c_void_p), ("second", c_void_p)]


class LoraRouter(Structure):
    _fields_ = [
        ("candidates", c_void_p),
        ("top_k", c_int32),
        ("is_signed", c_int32),
        ("temperature", c_float),
        ("unused", c_int32),
    ]


class LoraRouting(Structure):
    _fields_ = [("routers", c_void_p), ("router_of_token", c_void_p), ("totals", c_void_p), ("counts", c_void_p)]


class LoraStep(Structure):
    _fields_ = [
        ("layers", c_void_p),
        ("heads", c_void_p),
        ("factors", c_void_p),
        ("num_adapters", c_int64),
        ("routing", c_void_p),
    ]


class LoraExperts(Structure):
    _fields_ = [
        ("first", c_void_p),
        ("second", c_void_p),
        ("factors", c_void_p),
        ("num_adapters", c_int64),
        ("numbers", c_void_p),
        ("routing", c_void_p),
    ]


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
