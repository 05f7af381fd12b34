"""Helpers that make the keys which a lease is asked for."""

from __future__ import annotations

from collections.abc import Iterable

from expert_store import ExpertKey


def of_layer(layer: int, experts: Iterable[int]) -> dict[ExpertKey, int]:
    """Some experts of a layer, for a row each."""
    return {ExpertKey(layer, expert): 1 for expert in experts}
