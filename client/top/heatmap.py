"""Layers x experts as a picture that fits: colour by tier, brightness by recent traffic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from math import log1p

from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from client.frames import DEVICE, DISK, HOST, Rows
from client.top.trends import Heat

Rgb = tuple[int, int, int]

TIER_COLOURS: dict[int, Rgb] = {DISK: (225, 75, 75), HOST: (70, 150, 250), DEVICE: (80, 220, 120)}
TIER_NAMES = {DISK: "disk", HOST: "host", DEVICE: "device"}
TIER_SYMBOLS = {DISK: "·", HOST: "▒", DEVICE: "█"}
UPPER_HALF = "▀"
MAX_SCALE = 4  # pixels that one expert may take in either direction
DARKEST = 0.25  # of a colour, for experts without traffic
WARM_TOKENS = 16  # so much traffic is bright, however little there is elsewhere
NUM_SHADES = 12
GUTTER = 5  # columns, for the numbers of layers


@dataclass(frozen=True)
class Cell:
    """Some neighbouring experts of some neighbouring layers: the share of each tier, and the mean of their heat."""

    shares: tuple[float, float, float]
    heat: float

    @property
    def tier(self) -> int:
        """Where most of them are."""
        return max((DEVICE, HOST, DISK), key=lambda tier: self.shares[tier])

    def colour(self, warmest: float) -> Rgb:
        """The tiers' colours mixed by their shares, brighter with heat."""
        level = log1p(self.heat) / log1p(max(warmest, WARM_TOKENS))
        return _mix(self.shares, round(level * NUM_SHADES))


@dataclass(frozen=True)
class HeatMap:
    """Draws within the width that it is given and ``num_lines`` lines, each of which is two pixels high."""

    layers: Sequence[int]
    residency: Rows
    heat: Heat
    num_lines: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        num_experts = max(map(len, self.residency), default=0)
        width = options.max_width - GUTTER
        if not num_experts or width < 1 or self.num_lines < 1:
            return
        rows, columns = runs(len(self.layers), 2 * self.num_lines), runs(num_experts, width)
        tall = min(MAX_SCALE, 2 * self.num_lines // len(rows))
        wide = min(MAX_SCALE, width // len(columns))
        cells = [[self._cell(row, column) for column in columns] for row in rows]
        has_colours = not console.no_color and console.color_system is not None
        yield from self._pixels(rows, cells, tall, wide) if has_colours else self._symbols(rows, cells, wide)
        yield self._legend(has_colours)

    def _cell(self, rows: range, columns: range) -> Cell | None:
        """None where there are no experts, for layers may have different numbers of them."""
        residency = [tier for row in rows for tier in self.residency[row][columns.start : columns.stop]]
        if not residency:
            return None
        heat = sum(sum(self.heat[row][columns.start : columns.stop]) for row in rows)
        disk, host, device = (residency.count(tier) / len(residency) for tier in (DISK, HOST, DEVICE))
        return Cell((disk, host, device), heat / len(residency))

    def _pixels(
        self, rows: Sequence[range], cells: Sequence[Sequence[Cell | None]], tall: int, wide: int
    ) -> Iterator[Segment]:
        warmest = max(cell.heat for row in cells for cell in row if cell is not None)
        colours = [[None if cell is None else cell.colour(warmest) for cell in row] for row in cells]
        places = [place for place in range(len(rows)) for _ in range(tall)]  # by line of pixels, the row of cells
        empty: list[Rgb | None] = [None] * len(colours[0])
        labelled = -1
        for upper, lower in zip(places[::2], [*places[1::2], None], strict=False):
            yield self._label(rows[upper] if upper != labelled else None)
            labelled = upper
            below = empty if lower is None else colours[lower]
            for pair, same in groupby(zip(colours[upper], below, strict=True)):
                block = " " if pair == (None, None) else UPPER_HALF
                yield Segment(block * wide * len(list(same)), _style(*pair))
            yield Segment.line()

    def _symbols(self, rows: Sequence[range], cells: Sequence[Sequence[Cell | None]], wide: int) -> Iterator[Segment]:
        """Without colours, where experts are, a line for a row of cells, and for two where there are too many."""
        step = 1 if len(rows) <= self.num_lines else 2
        for place in range(0, len(rows), step):
            yield self._label(rows[place])
            yield Segment("".join((" " if cell is None else TIER_SYMBOLS[cell.tier]) * wide for cell in cells[place]))
            yield Segment.line()

    def _legend(self, has_colours: bool) -> Text:
        """What the colours or symbols of the tiers are that there are."""
        legend = Text(no_wrap=True, overflow="ellipsis")
        for tier, name in TIER_NAMES.items():
            if any(tier in row for row in self.residency):
                symbol, style = (
                    ("■", Style(color=Color.from_rgb(*TIER_COLOURS[tier])))
                    if has_colours
                    else (TIER_SYMBOLS[tier], Style())
                )
                legend.append(f"{symbol} ", style).append(f"{name}  ")
        return legend.append("layers down, experts across, brighter with more tokens", "dim")

    def _label(self, rows: range | None) -> Segment:
        """The first layer of a row of cells; nothing on a further line of the same row."""
        number = "" if rows is None else self.layers[rows.start]
        return Segment(f"{number:>{GUTTER - 1}} ", Style(dim=True))


def runs(count: int, most: int) -> list[range]:
    """So many neighbours, in at most ``most`` runs of nearly the same length."""
    parts = min(count, most)
    return [range(count * part // parts, count * (part + 1) // parts) for part in range(parts)]


@lru_cache(maxsize=4096)
def _mix(shares: tuple[float, float, float], shade: int) -> Rgb:
    part = DARKEST + (1 - DARKEST) * shade / NUM_SHADES
    red, green, blue = (
        round(part * sum(share * TIER_COLOURS[tier][channel] for tier, share in enumerate(shares)))
        for channel in range(3)
    )
    return red, green, blue


@lru_cache(maxsize=4096)
def _style(upper: Rgb | None, lower: Rgb | None) -> Style:
    return Style(
        color=None if upper is None else Color.from_rgb(*upper),
        bgcolor=None if lower is None else Color.from_rgb(*lower),
    )
