"""What one check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]  # a failure prevents serving


@dataclass(frozen=True)
class Finding:
    """One line."""

    name: str
    level: Level
    message: str
    advice: str | None = None  # what to do about it
    flags: tuple[str, ...] = ()  # of `greenroom serve` that do so
