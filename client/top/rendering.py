"""Rendering of one frame of the live view."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from client.frames import DEVICE, DISK, HOST, ExpertFrame
from client.memory import Memory
from client.terminal import printable, ratio_text, size_text
from client.top.heatmap import HeatMap, tier_style
from client.top.stacked_bar import StackedBar
from client.top.trends import Rates, View

MAX_BAR = 32  # columns
NUM_NAMED_PARTS = 2
NUM_OTHER_LINES = 7  # title, memory, disk, two of metrics, legend, cursor
MEMORY_COLOURS = {
    "trunk": "magenta",
    "experts": "blue",
    "kv_cache": "green",
    "step": "yellow",
    "process": "bright_black",
    "unaccounted": "red",
}


def render(view: View, title: str, height: int) -> RenderableType:
    """Render a view in at most ``height`` lines."""
    frame = view.frame
    num_lines = height - NUM_OTHER_LINES - len(frame.tiers)
    return Group(
        Text(printable(title), style="bold", no_wrap=True, overflow="ellipsis"),
        _tiers(frame),
        _metrics(frame, view.rates),
        HeatMap(frame.layers, frame.residency, view.heat, num_lines),
    )


def _tiers(frame: ExpertFrame) -> RenderableType:
    """Return a bar of memory by part, and a bar per tier of the share of experts in it; disk has those in no memory."""
    num_experts = sum(map(len, frame.residency))
    num_on_disk = sum(row.count(DISK) for row in frame.residency)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(max_width=MAX_BAR)  # shrinks if the other columns need the width
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_row("memory", *_memory(frame.memory))
    for name, tier in sorted(frame.tiers.items()):
        slots = f"{tier.num_resident:,} of {tier.num_slots:,} slots, {tier.num_pinned:,} pinned"
        nbytes = f"{size_text(tier.resident_bytes)} of {size_text(tier.budget_bytes)}"
        colour = DEVICE if name == "device" else HOST
        table.add_row(printable(name), _bar(num_experts, tier.num_resident, colour), slots, nbytes)
    on_disk = f"{num_on_disk:,} of {num_experts:,} experts"
    table.add_row("disk", _bar(num_experts, num_on_disk, DISK), on_disk, f"{len(frame.layers)} layers")
    return table


def _memory(memory: Memory) -> tuple[RenderableType, str, str]:
    """Return the bar, its largest parts as text, and bytes."""
    parts = [(nbytes, MEMORY_COLOURS.get(name, "white")) for name, nbytes in memory.parts.items()]
    largest = sorted(memory.parts.items(), key=lambda part: -part[1])[:NUM_NAMED_PARTS]
    total = max(memory.budget_bytes, memory.total_bytes, 1)
    largest_text = ", ".join(f"{printable(name).replace('_', ' ')} {nbytes / total:.0%}" for name, nbytes in largest)
    nbytes = f"{size_text(memory.total_bytes)} of {size_text(memory.budget_bytes)}"
    return StackedBar(memory.budget_bytes, parts), largest_text, nbytes


def _bar(total: int, part: int, tier: int) -> ProgressBar:
    style = tier_style(tier)
    return ProgressBar(total, part, complete_style=style, finished_style=style)


def _metrics(frame: ExpertFrame, rates: Rates) -> RenderableType:
    table = Table.grid(padding=(0, 3, 0, 0))
    for _ in range(3):
        table.add_column(no_wrap=True)
    table.add_row(
        f"hit ratio {ratio_text(frame.hit_ratio)} (optimal {ratio_text(frame.optimal_hit_ratio)})",
        f"read {size_text(rates.bytes_read)}/s ({size_text(frame.loaded_bytes)})",
        f"stall {100 * rates.stall_share:.0f} %",
    )
    table.add_row(
        f"{rates.generation_tokens:.1f} tokens/s (prompt {rates.prompt_tokens:.1f})",
        f"{frame.num_requests_running} running, {frame.num_requests_waiting} waiting",
        f"KV cache {100 * frame.kv_cache_usage:.0f} %",
    )
    return table
