"""Rows whose products show a change in the order of additions, and a setting for torch's threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def cancelling(out_features: int, in_features: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix ``(out, in)`` and a row ``(in,)`` of small integers whose products sum to zero, in random order.

    After a division by seven, or any odd number, the sums consist of rounding errors only.
    """
    random = torch.Generator().manual_seed(seed)
    matrix = torch.randint(-127, 128, (out_features, in_features), generator=random)
    row = torch.randint(-127, 128, (in_features,), generator=random)
    order = torch.randperm(in_features, generator=random)
    half = in_features // 2
    first, second = order[:half], order[half : 2 * half]
    matrix[:, second] = -matrix[:, first]
    row[second] = row[first]
    row[order[2 * half :]] = 0
    return matrix.float(), row.float()


def rows_with(row: torch.Tensor, count: int, place: int, seed: int = 0) -> torch.Tensor:
    """``count`` random rows, with ``row`` at ``place``."""
    rows = torch.randn((count, len(row)), generator=torch.Generator().manual_seed(seed)).to(row.dtype)
    rows[place] = row
    return rows


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
