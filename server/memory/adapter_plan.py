"""Decides how much memory adapters get."""

from __future__ import annotations

from server.settings import ServeSettings

AUTO_SHARE = 16  # ``auto`` is 1/16 of the budget,
LEAST_AUTO_BYTES = 64 << 20  # but at least this much,
SPARE_SHARE = 2  # and at most 1/2 of what the rest of the server does not need


def asked_adapter_bytes(settings: ServeSettings) -> int:
    """Return the bytes that the user asks for; 0 for ``auto``, or if no adapter can be loaded."""
    return (settings.adapter_memory.nbytes or 0) if settings.serves_adapters else 0


def adapter_bytes(settings: ServeSettings, budget_bytes: int, spare_bytes: int) -> int:
    """Return the bytes for adapters.

    Args:
        spare_bytes: what is left of the budget beside everything that serving needs.
    """
    if not settings.serves_adapters or not settings.adapter_memory.is_auto:
        return asked_adapter_bytes(settings)
    return max(0, min(max(budget_bytes // AUTO_SHARE, LEAST_AUTO_BYTES), spare_bytes // SPARE_SHARE))
