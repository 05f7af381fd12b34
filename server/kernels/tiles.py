"""Matrix products that give a row the same bits in any company.

A library picks its kernel, and with it the order of additions, by the shapes it is given. So rows are multiplied in
tiles of a fixed number, filled up with zeros. The matrix is the left operand and the rows are its right one, because
that order depends least on how many there are, and because packing the right operand for the processor's tiles then
costs little. Larger tiles are used where a trial shows that they add in the same order as the smallest.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch.nn import functional as F

SIZES = (16, 32, 64, 128, 256)  # rows of a tile; the first is always used, the others where they agree with it
MOST_TRIED = 1 << 26  # elements of a matrix; a larger one is multiplied by the smallest tiles without a trial
TRIAL_ROWS = 64  # of the trial's matrix, which repeat


class NotInvariantError(RuntimeError):
    """Arithmetic of this processor and build of torch depends on where a row stands."""


def product(matrix: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """``rows @ matrix.mT``, each row's bits independent of the number and content of the others.

    Args:
        matrix: ``(..., out, in)``, the same layout at every call.
        rows: ``(..., rows, in)`` with the same leading sizes.

    Returns:
        ``(..., rows, out)``.

    Raises:
        NotInvariantError: even tiles of one size do not give that here.
    """
    count = rows.shape[-2]
    if count == 0:
        return rows.new_zeros((*rows.shape[:-1], matrix.shape[-2]))
    sizes = _sizes(matrix)
    rows = rows.contiguous()
    parts, start = [], 0
    while start < count:
        left = count - start
        size = next((size for size in sizes if size >= left), sizes[-1])
        parts.append(_tile_product(matrix, rows[..., start : start + size, :], size))
        start += size
    return torch.cat(parts, -2) if len(parts) != 1 else parts[0].contiguous()


def in_usual_layout(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix itself where its layout in memory changes no bit of a product, else a contiguous copy."""
    key = (tuple(matrix.shape), matrix.stride(), matrix.dtype, matrix.device, torch.get_num_threads())
    return matrix if matrix.is_contiguous() or _is_layout_free(*key) else matrix.contiguous()


def _tile_product(matrix: torch.Tensor, rows: torch.Tensor, size: int) -> torch.Tensor:
    count = rows.shape[-2]
    if count < size:
        rows = F.pad(rows, (0, 0, 0, size - count))
    return torch.matmul(matrix, rows.mT).mT[..., :count, :]


def _sizes(matrix: torch.Tensor) -> tuple[int, ...]:
    if matrix.numel() > MOST_TRIED:
        return SIZES[:1]
    return _agreeing_sizes(tuple(matrix.shape), matrix.stride(), matrix.dtype, matrix.device, torch.get_num_threads())


@cache
def _agreeing_sizes(
    shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, device: torch.device, num_threads: int
) -> tuple[int, ...]:
    """The sizes of tiles that add in the order of the smallest, whatever place a row has in them."""
    matrix, row = _cancelling(shape, dtype, device)
    matrix = torch.empty_strided(shape, stride, dtype=dtype, device=device).copy_(matrix)
    results = {size: _results(matrix, row, size) for size in SIZES}
    wanted = results[SIZES[0]][0]
    agreeing = tuple(size for size in SIZES if all(torch.equal(found, wanted) for found in results[size]))
    if agreeing[:1] != SIZES[:1]:
        raise NotInvariantError(
            f"a product with a matrix of {list(shape)} in {dtype} depends on the place of a row, "
            f"with {num_threads} threads on this processor; deterministic arithmetic needs another dtype or device"
        )
    return agreeing


@cache
def _is_layout_free(
    shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, device: torch.device, num_threads: int
) -> bool:
    del num_threads  # a key of the cache
    matrix, row = _cancelling(shape, dtype, device)
    strided = torch.empty_strided(shape, stride, dtype=dtype, device=device).copy_(matrix)
    wanted = _results(matrix, row, SIZES[0])
    return all(torch.equal(one, other) for one, other in zip(_results(strided, row, SIZES[0]), wanted, strict=True))


def _results(matrix: torch.Tensor, row: torch.Tensor, size: int) -> list[torch.Tensor]:
    """The products of a row at the first, a middle and the last place of a tile of random rows."""
    random = torch.Generator().manual_seed(size)
    company = torch.randn((*matrix.shape[:-2], size, len(row)), generator=random).to(row)
    results = []
    for place in (0, size // 2, size - 1):
        tile = company.clone()
        tile[..., place, :] = row
        results.append(_tile_product(matrix, tile, size)[..., place, :])
    return results


def _cancelling(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix ``shape`` and a row ``(in,)`` whose products sum to zero but for rounding.

    What is left shows the order of the additions undisguised, even after it was rounded to bfloat16.
    """
    out_features, in_features = shape[-2:]
    random = torch.Generator().manual_seed(in_features)
    pattern = torch.randn((TRIAL_ROWS, in_features), generator=random)
    row = torch.randn(in_features, generator=random)
    first, second = torch.split(torch.randperm(in_features, generator=random), [-(-in_features // 2), in_features // 2])
    if len(first) > len(second):
        row[first[-1]] = 0
    row[second] = row[first[: len(second)]]
    pattern[:, second] = -pattern[:, first[: len(second)]]
    repeats = math.ceil(out_features / TRIAL_ROWS)
    matrix = pattern.to(device, dtype).repeat(repeats, 1)[:out_features].expand(shape).contiguous()
    return matrix, row.to(device, dtype)
