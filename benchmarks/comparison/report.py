"""Figures to medians, ratios, shares and tables; nothing here measures."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

Entry = Mapping[str, Any]  # one engine at one task under one condition, as the JSON line has it


@dataclass(frozen=True)
class Row:
    """An engine at a task, beside those that it ran with."""

    condition: str
    weights: str  # Greenroom's format of the group
    task: str
    engine: str
    median: float  # tokens/s, or seconds to the first token
    least: float
    most: float
    ratio: float  # of the best peer's speed to its own; above 1 is faster than the best peer
    memory_share: float | None  # of what memory gives
    disk_share: float | None  # of what the disk gives
    peak_bytes: int
    bytes_read: float  # a generated token, where a limit makes the engine read

    @property
    def is_time(self) -> bool:
        return self.task.startswith("first token")


def task_name(entry: Entry) -> str:
    if entry["kind"] == "prompt":
        return f"first token of {entry['prompt_tokens']:,}"
    return f"{entry['streams']} stream{'s' * (entry['streams'] > 1)}"


def speeds(entry: Entry) -> list[float]:
    """Tokens/s of each sample, or prompts a second: more is better."""
    if entry["kind"] == "prompt":
        return [1 / sample["first_token_seconds"] for sample in entry["samples"]]
    return [sample["tokens"] / sample["seconds"] for sample in entry["samples"] if sample["tokens"]]


def make_rows(result: Mapping[str, Any]) -> list[Row]:
    """All rows, in the order of the entries."""
    groups: dict[tuple[str, ...], list[Entry]] = {}
    for entry in result["entries"]:
        if speeds(entry):
            groups.setdefault((entry["condition"], entry["weights"], task_name(entry)), []).append(entry)
    rows = []
    for (condition, weights, task), entries in groups.items():
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
                    f"{entry['engine']} {entry['format']}",
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


def memory_rate(bandwidth: Mapping[str, Any]) -> float | None:
    """Bytes a second that memory can give: the most that was seen."""
    return max(bandwidth["memory"], default=None)


def disk_rates(bandwidth: Mapping[str, Any]) -> dict[str, float]:
    """Bytes a second that direct reads gave, by bytes of a block: medians, since disks are shared."""
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
    "of best peer",
    "of memory",
    "of disk",
    "peak",
    "read",
)


def cells(row: Row) -> list[str]:
    """One row as text."""
    unit, places = ("s", 2) if row.is_time else ("/s", 1)
    return [
        row.condition,
        row.weights,
        row.task,
        row.engine,
        f"{row.median:.{places}f} {unit}",
        f"{row.least:.{places}f}-{row.most:.{places}f}",
        "" if row.ratio != row.ratio else f"{row.ratio:.2f}",
        _share(row.memory_share),
        _share(row.disk_share),
        f"{row.peak_bytes / 2**20:,.0f} MiB",
        f"{row.bytes_read / 1e6:.1f} MB/token" if row.condition != "resident" else "",
    ]


def _share(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def make_table(rows: Iterable[Row]) -> Table:
    """For a terminal; groups are parted by lines."""
    table = Table(*COLUMNS)
    before = None
    for row in rows:
        group = (row.condition, row.weights, row.task)
        if before not in (None, group):
            table.add_section()
        table.add_row(*(["", "", "", *cells(row)[3:]] if before == group else cells(row)))
        before = group
    return table


def losses(rows: Sequence[Row]) -> list[Row]:
    """The rows of Greenroom in which a peer was faster, worst first."""
    return sorted(
        (row for row in rows if row.engine.startswith("greenroom ") and row.ratio < 1), key=lambda row: row.ratio
    )
