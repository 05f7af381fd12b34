"""Tables and summary lines of the memory benchmark."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

Entry = dict[str, Any]  # result of a load or a mixed load under one limit, as in the JSON line
MIB = 1 << 20


def limit_name(limit_mib: int | None) -> str:
    return "no limit" if limit_mib is None else f"{limit_mib} MiB"


def make_table(entries: Sequence[Entry]) -> Table:
    """Return a table with one row per load."""
    table = Table(box=None, header_style="")
    for name in ("limit", "expert budget", "load", "state"):
        table.add_column(name)
    for name in ("peak MiB", "used", "anonymous MiB", "other MiB", "slots", "resident"):
        table.add_column(name, justify="right")
    for name in ("tokens/s", "decoding", "first token s"):
        table.add_column(name, justify="right")
    for entry in entries:
        limit, used = entry["limit_mib"], entry.get("group_bytes")
        table.add_row(
            limit_name(limit),
            entry["budget"],
            f"{entry['streams']} x {entry['prompt_tokens']}",
            entry["state"],
            _mib(entry.get("peak_bytes")),
            f"{used / limit / MIB:.0%}" if used is not None and limit is not None else "",
            _mib(entry.get("anonymous_bytes")),
            _mib(entry.get("other_bytes")),
            str(entry.get("expert_slots", "")),
            str(entry.get("expert_resident", "")),
            _speed(entry.get("tokens_per_second")),
            _speed(entry.get("decode_tokens_per_second")),
            _speed(entry.get("first_token_seconds")),
        )
    return table


def sweep_lines(entries: Sequence[Entry], planned: str) -> Iterator[str]:
    """Yield for each load the speed of the planned budget relative to the best swept budget that was not killed."""
    speeds: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    for entry in entries:
        if entry["state"] == "alive":
            load = entry["limit_mib"], entry["streams"], entry["prompt_tokens"]
            speeds.setdefault(load, {}).setdefault(entry["budget"], []).append(entry["tokens_per_second"])
    for (limit, streams, tokens), budgets in speeds.items():
        medians = {budget: statistics.median(found) for budget, found in budgets.items()}
        swept = {budget: speed for budget, speed in medians.items() if budget != planned}
        if planned in medians and swept:
            best = max(swept, key=lambda budget: swept[budget])
            ratio = medians[planned] / swept[best]
            load_name = f"{limit_name(limit)}, {streams} x {tokens}"
            yield f"{load_name}: {planned} is {ratio:.2f} of the best swept budget ({best})"


def mixture_lines(entries: Sequence[Entry]) -> Iterator[str]:
    for entry in entries:
        requests = "; ".join(
            f"{state} " + (", ".join(f"{count} {kind}" for kind, count in sorted(entry[state].items())) or "none")
            for state in ("answered", "refused", "failed")
        )
        thirds = " / ".join(map(_mib, entry["anonymous_bytes"]))
        yield (
            f"{limit_name(entry['limit_mib'])}, {entry['budget']}, {entry['minutes']:g} minutes: {entry['state']}, "
            f"peak {_mib(entry['peak_bytes'])} MiB; anonymous by thirds {thirds} MiB; {requests}"
        )


def has_failures(entries: Sequence[Entry]) -> bool:
    """Return True if a server was killed, failed at a load or exceeded its limit."""
    return any(
        entry["state"] in ("killed", "failed")
        or (entry["limit_mib"] is not None and (entry["peak_bytes"] or 0) > entry["limit_mib"] * MIB)
        for entry in entries
    )


def _mib(nbytes: float | None) -> str:
    return "" if nbytes is None else f"{nbytes / MIB:,.0f}"


def _speed(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
