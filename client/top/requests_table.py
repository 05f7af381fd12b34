"""The table of running and waiting requests, with as many columns as fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from client.requests import RequestStatus
from client.terminal import printable

KINDS = {"chatcmpl": "chat", "cmpl": "completion", "resp": "response", "msg": "message", "embd": "embedding"}
ID_CHARACTERS = 5
MINUTE, HOUR = 60, 3600
# From the most columns to the least.
COLUMNS = (
    ("request", "state", "prompt", "output", "tokens/s", "age", "stalled"),
    ("request", "state", "output", "tokens/s", "age"),
    ("request", "state", "output"),
    ("request", "state"),
)

Speeds = Mapping[tuple[str, int], float]


@dataclass(frozen=True)
class RequestsTable:
    """Draws a line of titles and a line per request, in at most ``num_lines`` lines; no line if there is no room.

    Args:
        speeds: tokens per second, by the key of a request.
    """

    requests: Sequence[RequestStatus]
    speeds: Speeds
    num_lines: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.num_lines < 2 or not self.requests:  # noqa: PLR2004  titles and a request
            return
        has_rest = len(self.requests) > self.num_lines - 1
        shown = self.requests[: self.num_lines - 2 if has_rest else None]
        tables = (self._table(names, shown) for names in COLUMNS)
        widest = console.options.update(max_width=1 << 16)
        yield next(
            (table for table in tables if Measurement.get(console, widest, table).maximum <= options.max_width),
            self._table(COLUMNS[-1], shown),
        )
        if has_rest:
            yield Text(f"and {len(self.requests) - len(shown):,} more", "dim")

    def _table(self, names: Sequence[str], shown: Sequence[RequestStatus]) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        for name in names:
            table.add_column(name, no_wrap=True)
        for status in shown:
            cells = texts(status, self.speeds.get(status.key))
            table.add_row(*(Text(cells[name]) for name in names))
        return table


def texts(status: RequestStatus, speed: float | None) -> dict[str, str]:
    """Return the text of each column, as on the dashboard."""
    prefix = status.id.replace("_", "-").partition("-")[0]
    number = status.id[len(prefix) + 1 :][:ID_CHARACTERS]
    choice = f" #{status.choice + 1}" if status.choice else ""
    is_queued = status.state == "waiting" and not status.completion_tokens
    read = min(status.prompt_tokens, status.cached_tokens)
    is_reading = status.state == "prefill" and read < status.prompt_tokens
    return {
        "request": printable(f"{KINDS.get(prefix, prefix)} {number}{choice}"),
        "state": f"waiting {duration_text(status.queue_seconds)}" if is_queued else printable(status.state),
        "prompt": f"{read:,} / {status.prompt_tokens:,}" if is_reading else f"{status.prompt_tokens:,}",
        "output": f"{status.completion_tokens:,} / {status.max_tokens:,}",
        "tokens/s": "-" if speed is None else f"{speed:.1f}",
        "age": duration_text(status.age_seconds),
        "stalled": duration_text(status.greenroom.expert_stall_seconds),
    }


def speeds_between(before: Sequence[RequestStatus], now: Sequence[RequestStatus]) -> dict[tuple[str, int], float]:
    """Return the tokens per second of the requests that generated between two moments."""
    old = {status.key: status for status in before}
    return {
        status.key: (status.completion_tokens - old[status.key].completion_tokens) / seconds
        for status in now
        if status.key in old
        and status.completion_tokens
        and (seconds := status.age_seconds - old[status.key].age_seconds) > 0
    }


def duration_text(seconds: float) -> str:
    """Format seconds, such as ``1.5 s`` or ``4 min``."""
    if seconds < MINUTE:
        return f"{seconds:.1f} s"
    return f"{seconds / MINUTE:.0f} min" if seconds < HOUR else f"{seconds / HOUR:.1f} h"
