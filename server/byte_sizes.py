"""Formats numbers of bytes as text."""

from __future__ import annotations

GIB = 1 << 30
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def format_bytes(nbytes: float) -> str:
    """Format a size for people: ``3.1 MiB``."""
    for unit in UNITS[:-1]:
        if nbytes < 1024:  # noqa: PLR2004
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} {UNITS[-1]}"


def as_flag(nbytes: int, *, rounds_up: bool = False) -> str:
    """Format a size as the value of a flag, rounded down by default: ``900MiB``, ``20.1GiB``."""
    if nbytes >= 10 * GIB:
        return f"{(nbytes * 10 + (GIB - 1 if rounds_up else 0)) // GIB / 10}GiB"
    return f"{(nbytes + ((1 << 20) - 1 if rounds_up else 0)) >> 20}MiB"
