"""Advice about a model that needs more memory than there is."""

from __future__ import annotations

from server.byte_sizes import as_flag, format_bytes
from server.memory.budget import asked_bytes
from server.memory.machine import total_bytes
from server.settings import ServeSettings

SMALL_EXPERTS = "shrink the experts with `greenroom pack --weights int4`"
SMALL_TRUNK = "shrink the trunk with `greenroom pack --trunk int8`, or `int4`"


def describe_budget(settings: ServeSettings, budget_bytes: int) -> str:
    """Return how much memory there is, and what ``--memory`` asks for."""
    if asked_bytes(settings, budget_bytes) > budget_bytes:
        return f"this machine has {format_bytes(budget_bytes)} available, less than --memory {settings.memory}"
    return f"--memory {settings.memory} is {format_bytes(budget_bytes)}"


def how_to_fit(settings: ServeSettings, budget_bytes: int, enough: int, *, fixed_bytes: int) -> str:
    """Return what to do about a model that does not fit the budget.

    Args:
        enough: a budget that the model fits.
        fixed_bytes: what stays of that if the experts shrink.
    """
    is_lowered = asked_bytes(settings, budget_bytes) > budget_bytes
    if not settings.memory.is_auto and not is_lowered and enough <= total_bytes():
        return f"set --memory to {as_flag(enough, rounds_up=True)} or more"
    smaller = SMALL_TRUNK if fixed_bytes > budget_bytes else SMALL_EXPERTS
    return f"free some memory, use a machine with {format_bytes(enough)} for the server, or {smaller}"
