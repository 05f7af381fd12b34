"""How much memory there is to plan with."""

from __future__ import annotations

import psutil

from server.control_group import memory_limit

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def available_bytes() -> int:
    """Memory that this process may still take: the machine's, or what its control group leaves if that is less."""
    available = int(psutil.virtual_memory().available)
    limit = memory_limit()
    return available if limit is None else min(available, limit.free_bytes)


def format_bytes(nbytes: float) -> str:
    """A size for people: ``3.1 MiB``."""
    for unit in UNITS[:-1]:
        if nbytes < 1024:  # noqa: PLR2004
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} {UNITS[-1]}"
