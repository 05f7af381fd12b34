"""Reports of replays: tables, JSON and curves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from expert_store.routing_log.replay import ReplayResult
from server.replay.measure import OPTIMAL, RoutingLogReport, Scope

SCOPES: tuple[Scope, ...] = ("decode", "all")


def mean_ratio(reports: Sequence[RoutingLogReport], place: int, row: str, scope: Scope) -> float | None:
    """Return the mean hit ratio at size number ``place``, over the routing logs that have look-ups."""
    ratios = [report.cells[place].hit_ratio(row, scope) for report in reports]
    known = [ratio for ratio in ratios if ratio is not None]
    return sum(known) / len(known) if known else None


def as_json(reports: Sequence[RoutingLogReport]) -> dict[str, Any]:
    """Return all counts and ratios; a ratio without look-ups is null."""
    return {
        "traces": [
            {
                "file": report.file,
                "model": report.model,
                "layers": report.num_layers,
                "experts": report.num_experts,
                "sizes": [
                    {
                        "size": cell.size,
                        "slots": cell.num_slots,
                        "policies": {row: _counts(result) for row, result in cell.results.items()},
                    }
                    for cell in report.cells
                ],
            }
            for report in reports
        ],
        "mean_hit_ratio": {
            scope: {
                row: {cell.size: mean_ratio(reports, place, row, scope) for place, cell in enumerate(reports[0].cells)}
                for row in reports[0].rows
            }
            for scope in SCOPES
        },
    }


def _counts(result: ReplayResult) -> dict[str, Any]:
    return {
        "lookups": dict(result.lookups),
        "hits": dict(result.hits),
        "hit_ratio": {"decode": result.hit_ratio("decode"), "all": result.hit_ratio()},
        "bytes_loaded": result.bytes_loaded,
    }


def as_table(reports: Sequence[RoutingLogReport]) -> str:
    """Return hit ratios by policy and size for each routing log, and the mean of several."""
    blocks = ["\n".join(_lines(report.rows, [report], _title(report))) for report in reports]
    if len(reports) > 1:
        blocks.append("\n".join(_lines(reports[0].rows, reports, f"mean of {len(reports)} routing logs")))
    return "\n\n".join(blocks)


def _title(report: RoutingLogReport) -> str:
    lookups = report.cells[0].results[OPTIMAL].lookups
    return (
        f"{report.file}: {report.model}, {report.num_experts} experts in {report.num_layers} layers, "
        f"{lookups.total()} look-ups, {lookups['decode']} of them decoding"
    )


def _lines(rows: Sequence[str], reports: Sequence[RoutingLogReport], title: str) -> Iterator[str]:
    yield title
    cells = reports[0].cells
    width = max(7, *(len(cell.size) + 1 for cell in cells))
    for scope in SCOPES:
        yield f"{'hit ratio, ' + scope:20}" + "".join(f"{cell.size:>{width}}" for cell in cells)
        if len(reports) == 1:
            yield f"{'slots':20}" + "".join(f"{cell.num_slots:>{width}}" for cell in cells)
        for row in rows:
            ratios = [mean_ratio(reports, place, row, scope) for place in range(len(cells))]
            texts = ["-" if ratio is None else f"{ratio:.3f}" for ratio in ratios]
            yield f"{row:20}" + "".join(f"{text:>{width}}" for text in texts)


def draw_curves(reports: Sequence[RoutingLogReport], path: Path) -> None:
    """Draw the mean hit ratio by the part of experts that fit, of decoding if there is any, else of all look-ups.

    Raises:
        OSError: the file can't be written, or matplotlib does not support its name's suffix.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  an optional dependency

    places = range(len(reports[0].cells))
    has_decode = mean_ratio(reports, 0, OPTIMAL, "decode") is not None
    scope: Scope = "decode" if has_decode else "all"
    shares = [
        100 * sum(report.cells[place].num_slots / report.num_experts for report in reports) / len(reports)
        for place in places
    ]
    order = sorted(places, key=lambda place: shares[place])
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for row in reports[0].rows:
        ratios = np.array([mean_ratio(reports, place, row, scope) for place in order], dtype=float)  # None is NaN
        style = "k--" if row == OPTIMAL else "o-"
        axes.plot([shares[place] for place in order], ratios, style, label=row, markersize=3)
    axes.set(xlabel="experts that fit in memory, %", ylabel=f"hit ratio, {scope}", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:
        raise OSError(f"--plot {path}: {error}") from error
