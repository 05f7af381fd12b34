"""The common part of the pack formats ``block_int8`` and ``block_int4``: blocks of 16 outputs and groups of 32 inputs.

A matrix ``(out, in)`` is padded with zeros to complete blocks and groups. If that adds anything, ``NAME_shape``, int32
``(2,)``, holds the original out and in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch.nn import functional as F

from server.kernels.formats.chunked import CHUNK_WEIGHTS, project_chunks
from server.kernels.native import library, quantising, slot_format
from server.kernels.native.slot_format import Places, Shape
from server.kernels.native.structures.matrices import Format, Matrix, Size

OUTPUTS = int(Size.BLOCK)  # per block
GROUP = int(Size.GROUP)  # inputs that share a scale
SHAPE = "_shape"
QUANTISED_WEIGHTS = 1 << 18  # weights that are quantised at a time, so that intermediate results stay in the caches

Spec = tuple[str, torch.dtype, tuple[int, ...]]


class BlockFormat(Protocol):
    """The interface of a block format; the modules ``block_int8`` and ``block_int4`` implement it."""

    CODES: str  # suffix of a tensor's name, as is SCALE
    SCALE: str
    LARGEST_WEIGHT: float
    OUTPUTS: int  # per block

    def specs(self, name: str, out_features: int, in_features: int) -> list[Spec]: ...

    def quantise(self, name: str, matrix: torch.Tensor) -> dict[str, torch.Tensor]: ...

    def dequantise(self, weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor: ...

    def describe(self, places: Places, name: str, shape: Shape) -> Matrix | None: ...

    def project(
        self, weights: Mapping[str, torch.Tensor], name: str, rows: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor: ...


def num_blocks(out_features: int) -> int:
    return -(-out_features // OUTPUTS)


def num_groups(in_features: int) -> int:
    return -(-in_features // GROUP)


def shape_specs(name: str, out_features: int, in_features: int) -> list[Spec]:
    """The tensor that holds the shape of a matrix that had to be padded; none for other matrices."""
    is_complete = out_features % OUTPUTS == 0 and in_features % GROUP == 0
    return [] if is_complete else [(name + SHAPE, torch.int32, (2,))]


def shape_tensors(name: str, matrix: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of ``shape_specs``."""
    return {found: torch.tensor(matrix.shape, dtype=dtype) for found, dtype, _ in shape_specs(name, *matrix.shape)}


def shape_of(weights: Mapping[str, torch.Tensor], name: str, scale: torch.Tensor) -> tuple[int, int]:
    """Out and in of a matrix with scales ``(blocks, groups, 16)``."""
    if name + SHAPE in weights:
        out_features, in_features = weights[name + SHAPE].tolist()
        return out_features, in_features
    return scale.shape[0] * OUTPUTS, scale.shape[1] * GROUP


def groups_of(matrix: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield a matrix ``(out, in)`` as float32 groups ``(blocks, 16, groups, 32)``, some blocks at a time."""
    rows = max(1, QUANTISED_WEIGHTS // (OUTPUTS * matrix.shape[1])) * OUTPUTS
    for chunk in torch.split(matrix, rows):
        filled = F.pad(chunk.float(), (0, -chunk.shape[1] % GROUP, 0, -len(chunk) % OUTPUTS))
        yield filled.reshape(-1, OUTPUTS, num_groups(matrix.shape[1]), GROUP)


def quantise(kind: Format, specs: list[Spec], matrix: torch.Tensor) -> dict[str, torch.Tensor] | None:
    """Quantise a matrix by the native kernels.

    Args:
        specs: of the codes and of their scales, and perhaps of the shape.

    Returns:
        Codes and scales by name; None if there are no native kernels, or the matrix is not on the CPU.
    """
    if not (matrix.is_cpu and library.is_available()):
        return None
    (codes, *_), (scales, *_) = specs[:2]
    tensors = {name: torch.empty(shape, dtype=dtype) for name, dtype, shape in specs[:2]}
    quantising.quantise(kind, matrix, tensors[codes], tensors[scales])
    return tensors


def blocks_per_chunk(scale: torch.Tensor) -> int:
    """The number of blocks to dequantise at a time."""
    return max(1, CHUNK_WEIGHTS // (OUTPUTS * GROUP * scale.shape[1]))


def join(chunks: Iterator[torch.Tensor], shape: tuple[int, int]) -> torch.Tensor:
    """Concatenate chunks ``(some of out, in)`` to a matrix ``(out, in)``, without the padding after the last output."""
    return torch.cat(list(chunks))[: shape[0]]


def project(
    rows: torch.Tensor, chunks: Iterator[torch.Tensor], out_features: int, bias: torch.Tensor | None
) -> torch.Tensor:
    """``(rows, in)`` to ``(rows, out)``, with the chunks of a matrix as ``join`` takes them."""
    output = project_chunks(rows, chunks)[:, :out_features]
    return output if bias is None else output + bias


def describe(kind: Format, places: Places, name: str, shape: Shape, word: int) -> Matrix | None:
    """Describe a matrix to the native kernels; None if its tensors are not those of the format.

    Args:
        name: the tensor of the codes.
        word: inputs whose codes are four bytes.
    """
    codes, scales = places.get(name), places.get(f"{name}_scale")
    if codes is None or scales is None:
        return None
    count, groups = num_blocks(shape[0]), num_groups(shape[1])
    if codes.shape != (count, groups * GROUP // word, OUTPUTS, 4):
        return None
    if scales.shape != (count, groups, OUTPUTS) or scales.dtype.itemsize != 2:  # noqa: PLR2004
        return None
    return slot_format.matrix(kind, shape, codes, scales)
