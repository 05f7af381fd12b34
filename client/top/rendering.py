"""Rendering of one frame of the live view, for terminals of any width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.color import Color
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from client.frames import DEVICE, DISK, HOST, Download, ExpertFrame, LayerBalance
from client.memory import Memory
from client.terminal import hit_ratio_text, printable, size_text
from client.top.heatmap import HeatMap
from client.top.palette import MEMORY_RGB, OTHER_RGB, TIER_RGB, Rgb
from client.top.requests_table import RequestsTable, duration_text
from client.top.stacked_bar import StackedBar
from client.top.trends import Rates, View
from client.top.weights_table import WeightsTable

MIN_BAR, MAX_BAR = 8, 32  # columns
GAP = 2
NUM_NAMED_PARTS = 2
NUM_NAMED_EXPERTS = 4
MAX_REQUESTS = 12
NUM_END_LINES = 2  # legend, cursor


@dataclass(frozen=True)
class Row:
    """One bar, with its name and two texts."""

    name: str
    bar: StackedBar
    amount: str
    nbytes: str


@dataclass(frozen=True)
class Screen:
    """Draws a view into the given width and at most ``height`` lines; the requests only where there is room.

    Args:
        shows_weights: draw variants and adapters in the place of requests and heatmap.
    """

    view: View
    title: str
    height: int
    shows_weights: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        frame, width = self.view.frame, options.max_width
        head = Group(
            Text(printable(self.title), style="bold", overflow="fold"),
            _bars(_rows(frame), width),
            _metrics(frame, self.view.rates, width),
            *([_balance(frame.balance)] if frame.balance else []),
        )
        num_lines = self.height - len(console.render_lines(head, options.update(height=None))) - NUM_END_LINES
        if self.shows_weights:
            yield head
            yield WeightsTable(self.view.weights, num_lines + 1)  # there is no legend
            return
        has_colours = console.color_system is not None and not console.no_color
        least = -(-len(frame.layers) // 2) if has_colours else len(frame.layers)  # lines of the heatmap
        table = RequestsTable(self.view.requests, self.view.speeds, min(MAX_REQUESTS + 1, num_lines - least))
        yield head
        yield table
        num_lines -= len(console.render_lines(table, options.update(height=None), pad=False, new_lines=True))
        yield HeatMap(frame.layers, frame.residency, self.view.heat, num_lines)


def _rows(frame: ExpertFrame) -> list[Row]:
    """Return the bars of memory by part, of the used slots of each tier, and of the experts that no tier holds."""
    num_experts = sum(map(len, frame.residency))
    num_on_disk = sum(row.count(DISK) for row in frame.residency)
    rows = [_memory(frame.memory)]
    for name, tier in sorted(frame.tiers.items()):
        colour = TIER_RGB[DEVICE if name == "device" else HOST]
        rows.append(
            Row(
                printable(name),
                _bar(tier.num_slots, [(tier.num_resident, colour)]),
                f"{tier.num_resident:,} of {tier.num_slots:,} slots, {tier.num_pinned:,} pinned",
                f"{size_text(tier.resident_bytes)} of {size_text(tier.budget_bytes)}",
            )
        )
    on_disk = f"{num_on_disk:,} of {num_experts:,} experts"
    rows.append(Row("disk", _bar(num_experts, [(num_on_disk, TIER_RGB[DISK])]), on_disk, f"{len(frame.layers)} layers"))
    return rows if frame.download is None else [*rows, _download(frame.download)]


def _download(download: Download) -> Row:
    """Return the bar of a model's files on the server's disk."""
    left, waits = download.seconds_left, "" if download.reason is None else f"waits: {printable(download.reason)}"
    return Row(
        "download",
        _bar(download.total_bytes, [(download.held_bytes, TIER_RGB[DISK])]),
        waits if left is None else f"{duration_text(left)} left" if left else "complete",
        f"{size_text(download.held_bytes)} of {size_text(download.total_bytes)}",
    )


def _memory(memory: Memory) -> Row:
    """Return the bar of memory, its largest parts as text, and bytes."""
    names = [*MEMORY_RGB, *(name for name in memory.parts if name not in MEMORY_RGB)]
    parts = [(memory.parts[name], MEMORY_RGB.get(name, OTHER_RGB)) for name in names if name in memory.parts]
    largest = sorted(memory.parts.items(), key=lambda part: -part[1])[:NUM_NAMED_PARTS]
    total = max(memory.budget_bytes, memory.total_bytes, 1)
    return Row(
        "memory",
        _bar(memory.budget_bytes, parts),
        ", ".join(f"{printable(name).replace('_', ' ')} {nbytes / total:.0%}" for name, nbytes in largest),
        f"{size_text(memory.total_bytes)} of {size_text(memory.budget_bytes)}",
    )


def _bar(total: float, parts: Sequence[tuple[float, Rgb]]) -> StackedBar:
    return StackedBar(total, [(amount, Color.from_rgb(*colour)) for amount, colour in parts])


def _bars(rows: Sequence[Row], width: int) -> RenderableType:
    """Return the bars in one line each, or in two where the terminal is narrow."""
    names, amounts, sizes = (
        max(map(cell_len, texts)) for texts in zip(*((row.name, row.amount, row.nbytes) for row in rows), strict=True)
    )
    is_wide = names + amounts + sizes + 3 * GAP + MIN_BAR <= width
    beside = names + GAP + GAP + (amounts + GAP + sizes if is_wide else max(amounts, sizes))
    table = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(width=max(1, min(MAX_BAR, width - beside)))
    for _ in range(2 if is_wide else 1):
        table.add_column(overflow="fold")
    for row in rows:
        if is_wide:
            table.add_row(row.name, row.bar, row.amount, row.nbytes)
        else:
            table.add_row(row.name, row.bar, row.amount)
            table.add_row("", "", row.nbytes)
    return table


def _balance(layers: Sequence[LayerBalance]) -> Text:
    """Return a line about the most uneven layer, and dead and overloaded experts by layer/expert."""
    worst = max(layers, key=lambda layer: layer.max_over_mean)
    parts = [f"load max/mean {worst.max_over_mean:.1f} in layer {worst.layer} (variation {worst.cv:.2f})"]
    for name in ("dead", "overloaded"):
        places = [f"{layer.layer}/{expert}" for layer in layers for expert in getattr(layer, name)]
        shown = ", ".join(places[:NUM_NAMED_EXPERTS]) + (", ..." if len(places) > NUM_NAMED_EXPERTS else "")
        parts.append(f"{len(places)} {name}" + (f" ({shown})" if places else ""))
    return Text(", ".join(parts), overflow="fold")


def _metrics(frame: ExpertFrame, rates: Rates, width: int) -> RenderableType:
    """Return the metrics in the most columns that fit."""
    hits, reads, stalls, tokens, requests, cache = (
        hit_ratio_text(frame.hit_ratio, frame.optimal_hit_ratio),
        f"read {size_text(rates.bytes_read)}/s ({size_text(frame.loaded_bytes)})",
        f"stall {100 * rates.stall_share:.0f} %",
        f"{rates.generation_tokens:.1f} tokens/s (prompt {rates.prompt_tokens:.1f})",
        f"{frame.num_requests_running} running, {frame.num_requests_waiting} waiting",
        f"KV cache {100 * frame.kv_cache_usage:.0f} %",
    )
    layouts: Sequence[Sequence[Sequence[str]]] = (
        [(hits, reads, stalls), (tokens, requests, cache)],
        [(hits, stalls), (reads, cache), (tokens, requests)],
        [(hits,), (reads,), (stalls,), (tokens,), (requests,), (cache,)],
    )

    def does_fit(lines: Sequence[Sequence[str]]) -> bool:
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return sum(widths) + (GAP + 1) * (len(widths) - 1) <= width

    lines = next(filter(does_fit, layouts), layouts[-1])
    table = Table.grid(padding=(0, GAP + 1, 0, 0), pad_edge=False)
    for _ in lines[0]:
        table.add_column(overflow="fold")
    for line in lines:
        table.add_row(*line)
    return table
