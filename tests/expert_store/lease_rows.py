"""Rows for leases in tests."""

from __future__ import annotations

from collections.abc import Iterable

from expert_store import ExpertKey


def one_row_each(layer: int, experts: Iterable[int]) -> dict[ExpertKey, int]:
    """Return some experts of a layer, with one row each."""
    return {ExpertKey(layer, expert): 1 for expert in experts}
