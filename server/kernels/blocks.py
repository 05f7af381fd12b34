"""Matrices in blocks of 16 outputs and groups of 32 inputs, as the packed formats ``q8`` and ``q4`` have them.

A matrix ``(out, in)`` is filled up with zeros to whole blocks and groups. Where that adds anything, ``NAME_shape`` is
int32 ``(2,)``: out and in as they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch.nn import functional as F

from .pieces import PIECE, project_pieces

OUTPUTS = 16  # of a block
GROUP = 32  # inputs that share a scale
SHAPE = "_shape"
CHUNK = 1 << 18  # weights that are quantised at a time, so that what is made of them stays in the caches

Spec = tuple[str, torch.dtype, tuple[int, ...]]


class BlockFormat(Protocol):
    """The interface of a block format; the modules ``q8`` and ``q4`` implement it."""

    CODES: str  # suffixes of the names of a matrix's tensors
    SCALE: str
    LARGEST_WEIGHT: float

    def specs(self, name: str, out_features: int, in_features: int) -> list[Spec]: ...

    def quantise(self, name: str, matrix: torch.Tensor) -> dict[str, torch.Tensor]: ...

    def dequantise(self, weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor: ...

    def project(
        self, weights: Mapping[str, torch.Tensor], name: str, rows: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor: ...


def num_blocks(out_features: int) -> int:
    return -(-out_features // OUTPUTS)


def num_groups(in_features: int) -> int:
    return -(-in_features // GROUP)


def shape_specs(name: str, out_features: int, in_features: int) -> list[Spec]:
    """The tensor that holds the shape of a matrix that had to be padded; none for other matrices."""
    is_whole = out_features % OUTPUTS == 0 and in_features % GROUP == 0
    return [] if is_whole else [(name + SHAPE, torch.int32, (2,))]


def shape_tensors(name: str, matrix: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of ``shape_specs``."""
    return {found: torch.tensor(matrix.shape, dtype=dtype) for found, dtype, _ in shape_specs(name, *matrix.shape)}


def shape_of(weights: Mapping[str, torch.Tensor], name: str, scale: torch.Tensor) -> tuple[int, int]:
    """Out and in of a matrix, whose scale words are ``(blocks, groups, 16)``."""
    if name + SHAPE in weights:
        out_features, in_features = weights[name + SHAPE].tolist()
        return out_features, in_features
    return scale.shape[0] * OUTPUTS, scale.shape[1] * GROUP


def chunks(matrix: torch.Tensor) -> Iterator[torch.Tensor]:
    """A matrix ``(out, in)`` as float32 groups ``(blocks, 16, groups, 32)``, some blocks after the other."""
    rows = max(1, CHUNK // (OUTPUTS * matrix.shape[1])) * OUTPUTS
    for chunk in torch.split(matrix, rows):
        filled = F.pad(chunk.float(), (0, -chunk.shape[1] % GROUP, 0, -len(chunk) % OUTPUTS))
        yield filled.reshape(-1, OUTPUTS, num_groups(matrix.shape[1]), GROUP)


def blocks_of_piece(scale: torch.Tensor) -> int:
    """The number of blocks to dequantise at a time."""
    return max(1, PIECE // (OUTPUTS * GROUP * scale.shape[1]))


def join(pieces: Iterator[torch.Tensor], shape: tuple[int, int]) -> torch.Tensor:
    """The matrix ``(out, in)`` of pieces ``(some of out, in)``, which may have filling behind the last output."""
    return torch.cat(list(pieces))[: shape[0]]


def project(
    rows: torch.Tensor, pieces: Iterator[torch.Tensor], out_features: int, bias: torch.Tensor | None
) -> torch.Tensor:
    """``(rows, in)`` to ``(rows, out)``, with a matrix as ``join`` takes it."""
    output = project_pieces(rows, pieces)[:, :out_features]
    return output if bias is None else output + bias
