"""The squares of the heat map, and how they look on terminals of many, few and no colours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import log1p

from rich.color import Color

from client.frames import DEVICE, DISK, HOST

TIER_NAMES = {DISK: "disk", HOST: "host", DEVICE: "device"}
TIER_RGB = {DISK: (225, 75, 75), HOST: (70, 150, 250), DEVICE: (80, 220, 120)}
TIER_COLOURS = {DISK: "red", HOST: "blue", DEVICE: "green"}  # of sixteen, each with a bright one
TIER_SYMBOLS = {DISK: "·", HOST: "▒", DEVICE: "█"}
DARKEST = 0.25  # of a colour, for experts without traffic
WARM_TOKENS = 16  # so much traffic is bright, however little there is elsewhere
NUM_SHADES = 12


@dataclass(frozen=True)
class Cell:
    """Some neighbouring experts of some neighbouring layers: the share of each tier, and the mean of their heat."""

    shares: tuple[float, float, float]
    heat: float

    @property
    def tier(self) -> int:
        """Where most of them are."""
        return max((DEVICE, HOST, DISK), key=lambda tier: self.shares[tier])

    def level(self, warmest: float) -> float:
        """How hot it is beside the warmest, 0 to 1."""
        return log1p(self.heat) / log1p(max(warmest, WARM_TOKENS))

    def colour(self, warmest: float) -> Color:
        """The tiers' colours mixed by their shares, brighter with heat."""
        return _mix(self.shares, round(self.level(warmest) * NUM_SHADES))

    def colour_of_sixteen(self, warmest: float) -> Color:
        """The colour of the tier where most are, bright with heat."""
        bright = "bright_" if self.level(warmest) >= 0.5 else ""  # noqa: PLR2004
        return Color.parse(f"{bright}{TIER_COLOURS[self.tier]}")


@lru_cache(maxsize=4096)
def _mix(shares: tuple[float, float, float], shade: int) -> Color:
    part = DARKEST + (1 - DARKEST) * shade / NUM_SHADES
    mixed = (sum(share * TIER_RGB[tier][channel] for tier, share in enumerate(shares)) for channel in range(3))
    return Color.from_rgb(*(round(part * channel) for channel in mixed))
