"""Replays of routing logs with every policy at every size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from expert_store.routing_log.log import read_routing_log
from expert_store.routing_log.replay import ReplayResult, replay, replay_optimal
from server.replay.sizes import Size, UsageError

OPTIMAL = "optimal"
Scope = Literal["decode", "all"]


@dataclass(frozen=True)
class Cell:
    """The results of all policies at one size."""

    size: str
    num_slots: int
    results: dict[str, ReplayResult]

    def hit_ratio(self, row: str, scope: Scope) -> float | None:
        result = self.results[row]
        return result.hit_ratio("decode") if scope == "decode" else result.hit_ratio()


@dataclass(frozen=True)
class RoutingLogReport:
    """One routing log at every size; ``rows`` are the policies and, last, the optimum."""

    file: str
    model: str
    num_layers: int
    num_experts: int
    rows: tuple[str, ...]
    cells: list[Cell] = field(default_factory=list)


def replay_all(paths: Iterable[Path], policies: tuple[str, ...], sizes: Sequence[Size]) -> list[RoutingLogReport]:
    """Replay each routing log from empty slots, with a progress bar if standard error is a terminal.

    Raises:
        UsageError: a size leaves a layer without a slot.
        RoutingLogError: a file can't be read or is not a routing log.
    """
    logs = [(path, read_routing_log(path)) for path in paths]
    rows = (*policies, OPTIMAL)
    reports = []
    with tqdm(total=len(logs) * len(sizes) * len(rows), disable=None, leave=False, unit="replay") as progress:
        for path, routing_log in logs:
            header = routing_log.header
            num_experts = sum(header.layers.values())
            total_bytes = sum(count * header.slot_bytes[layer] for layer, count in header.layers.items())
            report = RoutingLogReport(path.name, header.model, len(header.layers), num_experts, rows)
            for size in sizes:
                num_slots = size.num_slots(num_experts, total_bytes)
                results = {}
                for row in rows:
                    try:
                        if row == OPTIMAL:
                            results[row] = replay_optimal(routing_log, num_slots)
                        else:
                            results[row] = replay(routing_log, row, num_slots)
                    except ValueError as error:
                        raise UsageError(f"--sizes {size.text} of {header.model}: {error}") from error
                    progress.update()
                report.cells.append(Cell(size.text, num_slots, results))
            reports.append(report)
    return reports
