"""Heatmap of layers x experts, scaled to the terminal: colour by tier, brightness by recent traffic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from client.frames import DEVICE, DISK, HOST, Rows
from client.top.heatmap_cells import TIER_NAMES, TIER_SYMBOLS, Cell
from client.top.palette import TIER_RGB
from client.top.trends import Heat

UPPER_HALF = "▀"
MAX_SCALE = 4  # maximum pixels per expert in either direction
MANY_COLOURS = ("256", "truecolor")
GUTTER = 5  # columns for the layer numbers
EXPLANATIONS = (
    "rows: layers, columns: experts, brighter: more recent tokens",
    "layers x experts, brighter: more tokens",
    "layers x experts",
)

Cells = Sequence[Sequence[Cell | None]]


@dataclass(frozen=True)
class HeatMap:
    """Draws into the given width and ``num_lines`` lines; each line is two pixels high."""

    layers: Sequence[int]
    residency: Rows
    heat: Heat
    num_lines: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        num_experts = max(map(len, self.residency), default=0)
        width = options.max_width - GUTTER
        if not num_experts or width < 1 or self.num_lines < 1:
            return
        rows, columns = split_evenly(len(self.layers), 2 * self.num_lines), split_evenly(num_experts, width)
        tall = min(MAX_SCALE, 2 * self.num_lines // len(rows))
        wide = min(MAX_SCALE, width // len(columns))
        cells = [[self._cell(row, column) for column in columns] for row in rows]
        if console.no_color or console.color_system is None:
            yield from self._symbols(rows, cells, wide)
            yield self._legend(options.max_width, has_colours=False)
            return
        max_heat = max(cell.heat for row in cells for cell in row if cell is not None)
        paint = Cell.colour if console.color_system in MANY_COLOURS else Cell.colour_of_sixteen
        colours = [[None if cell is None else paint(cell, max_heat) for cell in row] for row in cells]
        yield from self._pixels(rows, colours, tall, wide)
        yield self._legend(options.max_width, has_colours=True)

    def _cell(self, rows: range, columns: range) -> Cell | None:
        """Return a cell, or None if the layers have no such experts."""
        residency = [tier for row in rows for tier in self.residency[row][columns.start : columns.stop]]
        if not residency:
            return None
        heat = sum(sum(self.heat[row][columns.start : columns.stop]) for row in rows)
        disk, host, device = (residency.count(tier) / len(residency) for tier in (DISK, HOST, DEVICE))
        return Cell((disk, host, device), heat / len(residency))

    def _pixels(
        self, rows: Sequence[range], colours: Sequence[Sequence[Color | None]], tall: int, wide: int
    ) -> Iterator[Segment]:
        """Draw lines of two pixels: the foreground colours the upper half, the background the lower half."""
        places = [place for place in range(len(rows)) for _ in range(tall)]  # row of cells of each line of pixels
        empty: list[Color | None] = [None] * len(colours[0])
        labelled = -1
        for upper, lower in zip(places[::2], [*places[1::2], None], strict=False):
            yield self._label(rows[upper] if upper != labelled else None)
            labelled = upper
            below = empty if lower is None else colours[lower]
            for pair, same in groupby(zip(colours[upper], below, strict=True)):
                block = " " if pair == (None, None) else UPPER_HALF
                yield Segment(block * wide * len(list(same)), _style(*pair))
            yield Segment.line()

    def _symbols(self, rows: Sequence[range], cells: Cells, wide: int) -> Iterator[Segment]:
        """Draw tier symbols without colours, one line per row of cells, or per two rows if there are too many."""
        step = 1 if len(rows) <= self.num_lines else 2
        for place in range(0, len(rows), step):
            yield self._label(rows[place])
            yield Segment("".join((" " if cell is None else TIER_SYMBOLS[cell.tier]) * wide for cell in cells[place]))
            yield Segment.line()

    def _legend(self, width: int, *, has_colours: bool) -> Text:
        """Return the legend of the tiers that hold experts, and the longest explanation that fits."""
        legend = Text(no_wrap=True, overflow="ellipsis")
        for tier, name in TIER_NAMES.items():
            if any(tier in row for row in self.residency):
                symbol = "■" if has_colours else TIER_SYMBOLS[tier]
                legend.append(f"{symbol} ", tier_style(tier)).append(f"{name}  ")
        fitting = (text for text in EXPLANATIONS if legend.cell_len + len(text) <= width)
        return legend.append(next(fitting, ""), "dim")

    def _label(self, rows: range | None) -> Segment:
        """Return the label of a row of cells, its first layer; empty on further lines of the row."""
        number = "" if rows is None else self.layers[rows.start]
        return Segment(f"{number:>{GUTTER - 1}} ", Style(dim=True))


def tier_style(tier: int) -> Style:
    return Style(color=Color.from_rgb(*TIER_RGB[tier]))


def split_evenly(count: int, max_parts: int) -> list[range]:
    """Split ``range(count)`` into at most ``max_parts`` ranges of nearly equal length."""
    parts = min(count, max_parts)
    return [range(count * part // parts, count * (part + 1) // parts) for part in range(parts)]


@lru_cache(maxsize=4096)
def _style(upper: Color | None, lower: Color | None) -> Style:
    return Style(color=upper, bgcolor=lower)
