"""Batch-invariant matrix products: a row gives the same bits whatever the other rows are.

A library chooses its kernel, and with it the order of additions, by the shapes of its operands. So rows are multiplied
in tiles with a fixed number of rows, padded with zeros. The matrix is the left operand and the rows are the right one:
the order of additions then depends least on the number of rows, and packing the right operand for the processor's
tiles costs little. Larger tiles are used if a trial shows that they add in the same order as the smallest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch.nn import functional as F

SIZES = (16, 32, 64, 128, 256)  # rows of a tile; the first is always used, the others if they give the same bits
MOST_TRIED = 1 << 26  # elements of a matrix; larger ones use the smallest tiles without a trial
MOST_MATRICES = 32  # multiplied at once
TRIAL_ROWS = 64  # distinct rows of the trial's matrix, which repeat


class NotInvariantError(RuntimeError):
    """Products on this processor and build of torch depend on the place of a row in its tile."""


def product(matrix: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Compute ``rows @ matrix.mT``, each row's bits independent of the number and content of the others.

    Args:
        matrix: ``(out, in)`` in the same layout at every call.
        rows: ``(rows, in)``.

    Returns:
        ``(rows, out)``.

    Raises:
        NotInvariantError: even tiles of one size are not invariant here.
    """
    if matrix.shape[0] == 1:  # a library multiplies a matrix of rows by a vector here, whatever the tile
        return (rows.float() * matrix.float()).sum(-1, keepdim=True).to(rows.dtype)
    if matrix.numel() > MOST_TRIED:
        return _by_tiles(matrix, rows, SIZES[:1])
    shape, stride = (matrix.shape[0], matrix.shape[1]), (matrix.stride(0), matrix.stride(1))
    return _by_tiles(matrix, rows, _sizes(shape, stride, matrix.dtype, matrix.device, torch.get_num_threads()))


def batched_matmul(matrices: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Compute ``rows @ matrices.mT`` for several matrices, whose number changes no bit either.

    Args:
        matrices: ``(matrices, out, in)``, each in the same layout at every call.
        rows: ``(matrices, rows, in)``.

    Returns:
        ``(matrices, rows, out)``.

    Raises:
        NotInvariantError: see ``product``.
    """
    parts, start, total = [], 0, matrices.shape[0]
    while start < total:
        sizes, count = _batch(matrices, total - start)
        end = start + count
        parts.append(_by_tiles(matrices[start:end], rows[start:end], sizes))
        start = end
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _by_tiles(matrix: torch.Tensor, rows: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    rows = rows.contiguous()
    parts, start, count = [], 0, rows.shape[-2]
    while start < count:
        left = count - start
        size = next((size for size in sizes if size >= left), sizes[-1])
        parts.append(_by_tile(matrix, rows[..., start : start + size, :], size))
        start += size
    if not parts:
        return rows.new_zeros((*rows.shape[:-1], matrix.shape[-2]))
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts, -2)


def _by_tile(matrix: torch.Tensor, rows: torch.Tensor, size: int) -> torch.Tensor:
    count = rows.shape[-2]
    if count < size:
        rows = F.pad(rows, (0, 0, 0, size - count))
    return torch.matmul(matrix, rows.mT).mT[..., :count, :]


@cache
def _sizes(
    shape: tuple[int, int], stride: tuple[int, int], dtype: torch.dtype, device: torch.device, num_threads: int
) -> tuple[int, ...]:
    """The tile sizes that add in the order of the smallest tile, for any place of a row."""
    usual, row = _cancelling(shape, dtype, device)
    matrix = torch.empty_strided(shape, stride, dtype=dtype, device=device).copy_(usual)
    sizes = _agreeing_sizes(matrix, row, _results(matrix, row, SIZES[0])[0])
    if SIZES[0] not in sizes:
        raise _not_invariant(shape, dtype, num_threads)
    return sizes


def _batch(matrices: torch.Tensor, left: int) -> tuple[tuple[int, ...], int]:
    """The tile sizes to use, and the number of matrices to multiply at once, a power of two."""
    _, *shape = matrices.shape
    num_threads = torch.get_num_threads()
    for count in (min(MOST_MATRICES, 1 << left.bit_length() - 1), 1):
        key = (count, shape[0], shape[1]), matrices.stride(), matrices.dtype, matrices.device, num_threads
        if sizes := _sizes_in_batch(*key):
            return sizes, count
    raise _not_invariant(shape, matrices.dtype, num_threads)


@cache
def _sizes_in_batch(
    shape: tuple[int, int, int],
    stride: tuple[int, int, int],
    dtype: torch.dtype,
    device: torch.device,
    num_threads: int,
) -> tuple[int, ...]:
    """The tile sizes that give the same bits for several matrices at once as the smallest tile for one."""
    del num_threads  # only part of the cache's key
    usual, row = _cancelling(shape[1:], dtype, device)
    matrices = torch.empty_strided(shape, stride, dtype=dtype, device=device).copy_(usual)
    return _agreeing_sizes(matrices, row, _results(matrices[:1], row, SIZES[0])[0])


def _agreeing_sizes(matrix: torch.Tensor, row: torch.Tensor, wanted: torch.Tensor) -> tuple[int, ...]:
    return tuple(
        size
        for size in SIZES
        if all(torch.equal(wanted.expand_as(found), found) for found in _results(matrix, row, size))
    )


def _not_invariant(shape: Sequence[int], dtype: torch.dtype, num_threads: int) -> NotInvariantError:
    return NotInvariantError(
        f"a product with a matrix of {list(shape)} in {dtype} depends on the place of a row, "
        f"with {num_threads} threads on this processor; deterministic arithmetic needs another dtype or device"
    )


def _results(matrix: torch.Tensor, row: torch.Tensor, size: int) -> list[torch.Tensor]:
    """The products of a row at the first, a middle and the last place among random rows, some unaligned in memory."""
    random = torch.Generator().manual_seed(size)
    others = torch.randn((*matrix.shape[:-2], size, len(row)), generator=random).to(row)
    results = []
    for place in (0, size // 2, size - 1):
        tile = others.new_empty(others.numel() + place)[place:].view(others.shape).copy_(others)
        tile[..., place, :] = row
        results.append(_by_tile(matrix, tile, size)[..., place, :])
    return results


def _cancelling(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix ``shape`` and a row ``(in,)`` whose products sum to zero except for rounding.

    The rounding errors that remain depend on the order of additions, and show it even after rounding to bfloat16.
    """
    out_features, in_features = shape
    random = torch.Generator().manual_seed(in_features)
    pattern = torch.randn((TRIAL_ROWS, in_features), generator=random)
    row = torch.randn(in_features, generator=random)
    first, second = torch.split(torch.randperm(in_features, generator=random), [-(-in_features // 2), in_features // 2])
    if len(first) > len(second):
        row[first[-1]] = 0
    row[second] = row[first[: len(second)]]
    pattern[:, second] = -pattern[:, first[: len(second)]]
    repeats = math.ceil(out_features / TRIAL_ROWS)
    matrix = pattern.to(device, dtype).repeat(repeats, 1)[:out_features].contiguous()
    return matrix, row.to(device, dtype)
