"""Medians, ratios, shares and tables of the measured samples."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from benchmarks.comparison.plan import SHORT_CONTEXT

Entry = Mapping[str, Any]  # one engine, task and condition, as in the JSON line


@dataclass(frozen=True)
class Row:
    """One engine at one task, compared with the engines of the same run."""

    condition: str
    weights: str  # Greenroom's format
    task: str
    run: int
    engine: str
    is_greenroom: bool
    median: float  # tokens/s, or seconds to the first token
    minimum: float
    maximum: float
    ratio: float  # speed relative to the best peer; above 1 is faster
    memory_share: float | None  # share of the memory bandwidth
    disk_share: float | None  # share of the disk bandwidth
    peak_bytes: int
    bytes_read: float  # from disk per generated token

    @property
    def is_time(self) -> bool:
        return self.task.startswith("first token")


def task_name(entry: Entry) -> str:
    if entry["kind"] == "prompt":
        return f"first token of {entry['prompt_tokens']:,}"
    name = f"{entry['streams']} stream{'s' * (entry['streams'] > 1)}"
    return name if entry["prompt_tokens"] <= SHORT_CONTEXT else f"{name} after {entry['prompt_tokens']:,}"


def is_long(task: str) -> bool:
    """Return whether streams decode after more tokens than usual."""
    return " after " in task


def speeds(entry: Entry) -> list[float]:
    """Return tokens/s, or prompts per second, of each sample."""
    if entry["kind"] == "prompt":
        return [1 / sample["first_token_seconds"] for sample in entry["samples"]]
    return [sample["tokens"] / sample["seconds"] for sample in entry["samples"] if sample["tokens"]]


def make_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return all rows, in the order of the entries."""
    groups: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in result["entries"]:
        if speeds(entry):
            groups.setdefault((entry["condition"], entry["weights"], task_name(entry), entry.get("run", 0)), []).append(
                entry
            )
    rows = []
    for (condition, weights, task, run), entries in groups.items():
        peers = [statistics.median(speeds(entry)) for entry in entries if not entry["is_greenroom"]]
        best = max(peers, default=float("nan"))
        for entry in entries:
            found = speeds(entry)
            shown = [1 / speed for speed in found] if entry["kind"] == "prompt" else found
            median = statistics.median(found)
            rows.append(
                Row(
                    condition,
                    weights,
                    task,
                    run,
                    f"{entry['engine']} {entry['format']}",
                    entry["is_greenroom"],
                    statistics.median(shown),
                    min(shown),
                    max(shown),
                    median / best,
                    _memory_share(entry, median, result["bandwidth"]),
                    _disk_share(entry, result["bandwidth"]),
                    entry["peak_bytes"],
                    _bytes_read(entry),
                )
            )
    return rows


def busy_cores(result: Mapping[str, Any]) -> tuple[float, float]:
    """Return the cores that other processes used during measurements: median and maximum over the samples."""
    found = [sample.get("others_cores", 0.0) for entry in result["entries"] for sample in entry["samples"]]
    return (statistics.median(found), max(found)) if found else (0.0, 0.0)


def memory_rate(bandwidth: Mapping[str, Any]) -> float | None:
    """Return the memory bandwidth in bytes per second, the maximum of all measurements."""
    return max(bandwidth["memory"], default=None)


def disk_rates(bandwidth: Mapping[str, Any]) -> dict[str, float]:
    """Return the median rate of direct reads in bytes per second, by block bytes."""
    return {block: statistics.median(rates) for block, rates in bandwidth["disk"].items()}


def _memory_share(entry: Entry, speed: float, bandwidth: Mapping[str, Any]) -> float | None:
    memory = memory_rate(bandwidth)
    if entry["kind"] == "prompt" or memory is None:
        return None
    return speed / entry["streams"] * entry["step_bytes"] / memory


def _disk_share(entry: Entry, bandwidth: Mapping[str, Any]) -> float | None:
    disk = disk_rates(bandwidth).get(str(entry["block_bytes"]))
    if entry["condition"] == "resident" or disk is None:
        return None
    rates = [sample["bytes_read"] / (sample["seconds"] + sample["first_token_seconds"]) for sample in entry["samples"]]
    return statistics.median(rates) / disk


def _bytes_read(entry: Entry) -> float:
    return statistics.median(
        sample["bytes_read"] / (sample["tokens"] + entry["streams"]) for sample in entry["samples"]
    )


COLUMNS = (
    "memory",
    "format",
    "task",
    "engine",
    "median",
    "range",
    "vs. best peer",
    "memory bandwidth",
    "disk bandwidth",
    "peak",
    "read",
)


def cells(row: Row) -> list[str]:
    """Return one row as text."""
    unit, places = ("s", 2) if row.is_time else ("/s", 1)
    return [
        row.condition,
        row.weights,
        row.task,
        row.engine,
        f"{row.median:.{places}f} {unit}",
        f"{row.minimum:.{places}f}-{row.maximum:.{places}f}",
        "" if row.ratio != row.ratio else f"{row.ratio:.2f}",
        _share(row.memory_share),
        _share(row.disk_share),
        f"{row.peak_bytes / 2**20:,.0f} MiB",
        f"{row.bytes_read / 1e6:.1f} MB/token" if row.condition != "resident" else "",
    ]


def _share(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def make_table(rows: Iterable[Row]) -> Table:
    """Return a table for a terminal, with lines between groups."""
    table = Table(*COLUMNS)
    before = None
    for row in rows:
        group = (row.condition, row.weights, row.task, row.run)
        if before not in (None, group):
            table.add_section()
        table.add_row(*(["", "", "", *cells(row)[3:]] if before == group else cells(row)))
        before = group
    return table


def slower_rows(rows: Sequence[Row]) -> list[Row]:
    """Return Greenroom's rows in which a peer was faster, slowest first."""
    return sorted(
        (row for row in rows if row.engine.startswith("greenroom ") and row.ratio < 1), key=lambda row: row.ratio
    )
