"""The result of a check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]  # a failure prevents serving


@dataclass(frozen=True)
class Finding:
    """The result of one check, which is printed as one line."""

    name: str
    level: Level
    message: str
    advice: str | None = None  # remedy for the user
    flags: tuple[str, ...] = ()  # flags of `greenroom serve` that follow the advice
