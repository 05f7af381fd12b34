"""Cells of the heatmap, and their look on terminals with many, few and no colours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import log1p

from rich.color import Color

from client.frames import DEVICE, DISK, HOST
from client.top.palette import TIER_COLOURS, TIER_RGB

TIER_NAMES = {DISK: "disk", HOST: "host", DEVICE: "device"}
TIER_SYMBOLS = {DISK: "·", HOST: "▒", DEVICE: "█"}
DARKEST = 0.25  # brightness of experts without traffic
MIN_SCALE_TOKENS = 16  # least upper end of the scale, so that little traffic is not shown as much
NUM_SHADES = 12


@dataclass(frozen=True)
class Cell:
    """A block of neighbouring experts and layers: the share of each tier, and the mean heat."""

    shares: tuple[float, float, float]
    heat: float

    @property
    def tier(self) -> int:
        """The tier of most experts in the cell."""
        return max((DEVICE, HOST, DISK), key=lambda tier: self.shares[tier])

    def level(self, max_heat: float) -> float:
        """Return the heat relative to the maximum, 0 to 1, on a logarithmic scale."""
        return log1p(self.heat) / log1p(max(max_heat, MIN_SCALE_TOKENS))

    def colour(self, max_heat: float) -> Color:
        """Return the tiers' colours mixed by their shares, brighter with more heat."""
        return _mix(self.shares, round(self.level(max_heat) * NUM_SHADES))

    def colour_of_sixteen(self, max_heat: float) -> Color:
        """Return the colour of the main tier, bright if hot."""
        bright = "bright_" if self.level(max_heat) >= 0.5 else ""  # noqa: PLR2004
        return Color.parse(f"{bright}{TIER_COLOURS[self.tier]}")


@lru_cache(maxsize=4096)
def _mix(shares: tuple[float, float, float], shade: int) -> Color:
    part = DARKEST + (1 - DARKEST) * shade / NUM_SHADES
    mixed = (sum(share * TIER_RGB[tier][channel] for tier, share in enumerate(shares)) for channel in range(3))
    return Color.from_rgb(*(round(part * channel) for channel in mixed))
