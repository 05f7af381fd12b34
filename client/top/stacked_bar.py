"""A bar of stacked parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import Style

LINE = "━"
MIN_WIDTH = 4


@dataclass(frozen=True)
class StackedBar:
    """Draws parts in proportion to ``total``; if they exceed it, they fill the bar.

    The rest is drawn faintly, or not at all without colours.
    """

    total: float
    parts: Sequence[tuple[float, Color]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, reached, drawn = options.max_width, 0.0, 0
        total = max(self.total, sum(amount for amount, _ in self.parts))
        for amount, colour in self.parts:
            reached += amount
            end = round(width * reached / total) if total else 0
            yield Segment(LINE * (end - drawn), Style(color=colour))
            drawn = end
        has_colours = console.color_system is not None and not console.no_color
        yield Segment((LINE if has_colours else " ") * (width - drawn), console.get_style("bar.back"))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        del console
        return Measurement(MIN_WIDTH, options.max_width)
