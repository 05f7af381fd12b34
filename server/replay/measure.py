"""Every policy at every size over some traces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from expert_store.replay import ReplayResult, replay, replay_optimal
from expert_store.trace import read_trace

from .sizes import Size, UsageError

OPTIMAL = "optimal"
Scope = Literal["decode", "all"]


@dataclass(frozen=True)
class Cell:
    """One size, and what each policy made of it."""

    size: str
    num_slots: int
    results: dict[str, ReplayResult]

    def hit_ratio(self, row: str, scope: Scope) -> float | None:
        result = self.results[row]
        return result.hit_ratio("decode") if scope == "decode" else result.hit_ratio()


@dataclass(frozen=True)
class TraceReport:
    """One trace at every size; ``rows`` are the policies and, last, the optimum."""

    file: str
    model: str
    num_layers: int
    num_experts: int
    rows: tuple[str, ...]
    cells: list[Cell] = field(default_factory=list)


def replay_all(paths: Iterable[Path], policies: tuple[str, ...], sizes: Sequence[Size]) -> list[TraceReport]:
    """Replay from empty slots; progress is shown on standard error where that is a terminal.

    Raises:
        UsageError: a size leaves a layer without a slot.
        TraceError: a file can't be read or is not a trace.
    """
    traces = [(path, read_trace(path)) for path in paths]
    rows = (*policies, OPTIMAL)
    reports = []
    with tqdm(total=len(traces) * len(sizes) * len(rows), disable=None, leave=False, unit="replay") as progress:
        for path, trace in traces:
            header = trace.header
            num_experts = sum(header.layers.values())
            total_bytes = sum(count * header.slot_bytes[layer] for layer, count in header.layers.items())
            report = TraceReport(path.name, header.model, len(header.layers), num_experts, rows)
            for size in sizes:
                num_slots = size.num_slots(num_experts, total_bytes)
                results = {}
                for row in rows:
                    try:
                        result = replay_optimal(trace, num_slots) if row == OPTIMAL else replay(trace, row, num_slots)
                    except ValueError as error:
                        raise UsageError(f"--sizes {size.text} of {header.model}: {error}") from error
                    results[row] = result
                    progress.update()
                report.cells.append(Cell(size.text, num_slots, results))
            reports.append(report)
    return reports
