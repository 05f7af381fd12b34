"""Conversion of budgets in bytes to slots."""

from __future__ import annotations

from expert_store.catalog import ExpertCatalog, ExpertLayout
from expert_store.errors import BudgetError


def slots_per_layout(catalog: ExpertCatalog, budget_bytes: int) -> dict[ExpertLayout, int]:
    """Return the slots of each layout, in proportion to the bytes of its experts; never more than it has experts.

    Experts of variants count as the model's own do. A layout without any has no slot.

    Raises:
        BudgetError: a layout with experts would get no slot.
    """
    return share_of_layouts(catalog, min(budget_bytes, catalog.all_bytes))


def share_of_layouts(catalog: ExpertCatalog, budget_bytes: int) -> dict[ExpertLayout, int]:
    """Return the slots of ``slots_per_layout``, but more than there are experts if the budget holds more.

    Raises:
        BudgetError: a layout with experts would get no slot.
    """
    slots = {
        layout: count * budget_bytes // catalog.all_bytes if count else 0
        for layout, count in catalog.num_places.items()
    }
    if not all(slots[layout] for layout, count in catalog.num_places.items() if count):
        raise BudgetError(
            f"{budget_bytes} bytes hold no expert of every layer; give at least {least_bytes(catalog, 1)} bytes"
        )
    return slots


def least_bytes(catalog: ExpertCatalog, num_slots: int) -> int:
    """Return the smallest budget that gives every layout ``num_slots`` slots, or as many as it has experts."""
    return max(-(-min(num_slots, count) * catalog.total_bytes // count) for count in catalog.layouts.values())
