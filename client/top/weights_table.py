"""The table of expert variants and LoRA adapters, with as many columns as fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from client.adapters import Adapter
from client.terminal import printable, size_text
from client.variants import Variant

NONE = "No variants or adapters are loaded."
WAITING = "Waiting for the list of variants and adapters."
LEFT = ("model", "kind", "state", "tier")  # columns of texts
# From the most columns to the least.
COLUMNS = (
    ("model", "kind", "state", "tier", "size", "running", "requests", "tokens"),
    ("model", "state", "tier", "running", "requests", "tokens"),
    ("model", "tier", "requests", "tokens"),
    ("model", "requests"),
)
RANKS = {"running": 0, "loading": 1}  # of states; all others come after them


@dataclass(frozen=True)
class Weights:
    """The weights that a server has loaded beside the base model's."""

    variants: Sequence[Variant]
    adapters: Sequence[Adapter]


@dataclass(frozen=True)
class WeightsTable:
    """Draws a line of titles and a line per variant and adapter, those in use first, in at most ``num_lines`` lines.

    Args:
        weights: None until the server has sent them.
    """

    weights: Weights | None
    num_lines: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.weights is None:
            yield Text(WAITING, "dim")
            return
        rows = sorted(
            [*map(variant_texts, self.weights.variants), *map(adapter_texts, self.weights.adapters)],
            key=lambda row: RANKS.get(row["state"], len(RANKS)),
        )
        if not rows:
            yield Text(NONE, "dim")
            return
        has_rest = len(rows) > self.num_lines - 1
        num_shown = self.num_lines - 2 if has_rest else len(rows)
        if num_shown < 1:
            return
        shown = rows[:num_shown]
        tables = [_table(names, shown) for names in COLUMNS]
        widest = console.options.update(max_width=1 << 16)
        yield next(
            (table for table in tables if Measurement.get(console, widest, table).maximum <= options.max_width),
            tables[-1],
        )
        if has_rest:
            yield Text(f"and {len(rows) - len(shown):,} more", "dim")


def variant_texts(variant: Variant) -> dict[str, str]:
    """Return the text of each column."""
    return {
        "model": printable(variant.model),
        "kind": "variant",
        "state": "running" if variant.num_unfinished else "loaded",
        "tier": f"{variant.experts_resident:,} of {variant.experts:,} in memory" if variant.experts else "-",
        "size": size_text(variant.bytes),
        "running": f"{variant.num_unfinished:,}",
        "requests": f"{variant.num_requests:,}",
        "tokens": f"{variant.tokens:,}",
    }


def adapter_texts(adapter: Adapter) -> dict[str, str]:
    """Return the text of each column."""
    return {
        "model": printable(adapter.name),
        "kind": "adapter",
        "state": printable(adapter.state),
        "tier": printable(adapter.tier),
        "size": size_text(adapter.bytes),
        "running": f"{adapter.num_unfinished:,}",
        "requests": f"{adapter.num_requests:,}",
        "tokens": f"{adapter.tokens:,}",
    }


def _table(names: Sequence[str], rows: Sequence[dict[str, str]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in names:
        table.add_column(name, no_wrap=True, justify="left" if name in LEFT else "right")
    for row in rows:
        table.add_row(*(Text(row[name]) for name in names))
    return table
