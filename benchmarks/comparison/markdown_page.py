"""The results section of a Markdown page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparison.family_table import family_lines
from benchmarks.comparison.report import Row, busy_cores, cells, disk_rates, memory_rate, slower_rows

BEGIN, END = "<!-- results: made by benchmarks.compare -->", "<!-- end of results -->"
FAMILIES_BEGIN, FAMILIES_END = "<!-- families: made by benchmarks.compare --family -->", "<!-- end of families -->"
HEADINGS = {
    "resident": "All in memory",
    "half": "Half of the memory: limit of 1640 MiB",
    "quarter": "A quarter of the memory: limit of 820 MiB",
}


def write_page(path: Path, result: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Replace the text between the two markers of a page with the results.

    Raises:
        ValueError: If the page has no markers.
    """
    _replace(path, (BEGIN, END), results_text(result, rows))


def write_families(path: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Replace the text between the families' markers of a page with their table.

    Raises:
        ValueError: If the page has no markers.
    """
    skipped = [f"- {result['model']}: {line}" for result in results for line in result["skipped"]]
    lines = [*_about(results[0]), *family_lines(results), *(["", "Skipped:", "", *skipped] if skipped else []), ""]
    _replace(path, (FAMILIES_BEGIN, FAMILIES_END), "\n".join(lines))


def _replace(path: Path, markers: tuple[str, str], text: str) -> None:
    before, begin, rest = path.read_text("utf-8").partition(markers[0])
    _, end, after = rest.partition(markers[1])
    if not begin or not end:
        raise ValueError(f"{path} has no markers {markers[0]!r} and {markers[1]!r}; add both lines")
    path.write_text(f"{before}{begin}\n\n{text}\n{end}{after}", "utf-8")


def results_text(result: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Return machine, versions, tables and slower results in Markdown."""
    return "\n".join([*_about(result), *_tables(rows), *_exactness(result), *_slower(rows), *_skipped(result)])


def _about(result: Mapping[str, Any]) -> Iterator[str]:
    machine = result["machine"]
    text = f"Run on {result['date']}: {machine['cpu']} (family {machine['family']}, model {machine['model']}), "
    text += f"{machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB; {', '.join(machine['flags'])}."
    memory = memory_rate(result["bandwidth"])
    if memory is not None:
        text += f" Memory bandwidth with {result['threads']} threads: {memory / 1e9:.0f} GB/s."
    for block, rate in disk_rates(result["bandwidth"]).items():
        text += f" Direct reads of {int(block) / 1e6:.1f} MB: {rate / 1e9:.2f} GB/s."
    median, most = busy_cores(result)
    yield f"{text} Other processes used {median:.1f} cores meanwhile (median; maximum {most:.1f})."
    yield ""
    yield "Versions: " + "; ".join(f"{name}: {text}" for name, text in result["versions"].items()) + "."
    yield ""


def _tables(rows: Sequence[Row]) -> Iterator[str]:
    for condition, heading in HEADINGS.items():
        found = [row for row in rows if row.condition == condition]
        if not found:
            continue
        is_paged = condition != "resident"
        names = ["Task", "Engine", "Median", "Range", "Speed vs. best peer", "Memory bandwidth used"]
        names += ["Disk bandwidth used", "Read per token"] if is_paged else ["Peak memory"]
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
        "those of transformers in float32."
    )
    yield ""
    yield "| Engine | As a prompt | Token by token | Bytes per expert |"
    yield "| --- | ---: | ---: | ---: |"
    for entry in exactness["entries"]:
        decode = "" if entry["decode"] is None else f"{entry['decode']:.4f}"
        yield f"| {entry['engine']} {entry['format']} | {entry['prompt']:.4f} | {decode} | {entry['expert_bytes']:,} |"
    yield ""


def _slower(rows: Sequence[Row]) -> Iterator[str]:
    yield "### Where Greenroom is slower"
    yield ""
    slower = slower_rows(rows)
    for row in slower:
        memory = f" with {row.condition} memory" if row.condition != "resident" else ""
        yield f"- {row.weights}, {row.task}{memory}: {row.ratio:.2f} of the best peer's speed."
    if not slower:
        yield "Nowhere in this run."
    yield ""


def _skipped(result: Mapping[str, Any]) -> Iterator[str]:
    if result["skipped"]:
        yield "### Skipped"
        yield ""
        yield from (f"- {line}" for line in result["skipped"])
        yield ""
