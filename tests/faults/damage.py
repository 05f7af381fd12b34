"""Damage to files."""

from __future__ import annotations

from pathlib import Path


def flip_bit(path: Path, offset: int) -> None:
    """Flip the lowest bit of a byte."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
