"""Medians of the figures of ``benchmarks.full_size``, and their table."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

Entry = Mapping[str, Any]  # one engine at one size in one round, as in the JSON line


def medians(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return the median over the rounds of each figure, and its ratio to that of the first engine of the size."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for entry in entries:
        for figure, value in figures(entry):
            groups.setdefault((entry["size"], figure, entry["engine"]), []).append(value)
    rows: list[dict[str, Any]] = []
    first: dict[tuple[str, str], float] = {}
    for (size, figure, engine), values in groups.items():
        median = statistics.median(values)
        base = first.setdefault((size, figure), median)
        ratio = median / base if base else None
        rows.append({"size": size, "engine": engine, "figure": figure, "median": median, "ratio": ratio})
    return sorted(rows, key=lambda row: [row["size"], row["figure"]])


def figures(entry: Entry) -> Iterator[tuple[str, float]]:
    """Yield the figures of an entry by name; those that were not measured are left out."""
    for prompt in entry.get("prompts", ()):
        name = f"prompt of {prompt['tokens']:,}"
        yield f"{name}: first token, s", prompt["first_token_seconds"]
        yield f"{name}: GB read", prompt["bytes_read"] / 1e9
        yield from _known(f"{name}: read / experts not in memory", prompt.get("read_over_missing"))
        yield from _known(f"{name}: share of the disk's rate", prompt.get("disk_share"))
    for watched in entry.get("beside", ()):
        without, meanwhile = watched["without"], watched["meanwhile"]
        if without and meanwhile:
            for quantile in ("p50", "p95"):
                name = f"beside a prompt of {watched['tokens']:,}: {quantile} between tokens"
                yield f"{name}, s", meanwhile[f"{quantile}_seconds"]
                yield f"{name}, / without it", meanwhile[f"{quantile}_seconds"] / without[f"{quantile}_seconds"]
    for decoding in entry.get("decoding", ()):
        name = f"{decoding['streams']} streams"
        yield from _known(f"{name}: tokens/s", decoding["tokens_per_second"])
        if decoding.get("bytes_read_per_token") is not None:
            yield f"{name}: GB read a token", decoding["bytes_read_per_token"] / 1e9
        yield from _known(f"{name}: share of the disk's limit", decoding.get("share_of_disk_limit"))


def make_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table for a terminal."""
    table = Table("size", "figure", "engine", "median", "/ first engine")
    for row in rows:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        table.add_row(row["size"], row["figure"], row["engine"], f"{row['median']:.3g}", ratio)
    return table


def _known(name: str, value: float | None) -> Iterator[tuple[str, float]]:
    if value is not None:
        yield name, value
