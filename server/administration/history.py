"""The last hour of a server's totals, as points of lines."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from server.engine.engine_statistics import FIRST_TOKEN_BOUNDS, INTER_TOKEN_BOUNDS
from server.engine.interface import JsonObject
from server.engine.quantiles import quantile

INTERVAL_SECONDS = 5.0
NUM_POINTS = 720  # an hour
NUM_RECENT = 13  # totals that are kept for quantiles: those of a minute and its beginning
DECIMALS = 6
LEAST_STEP_SECONDS = 0.001  # between the times of two points

GAUGES = ("hit_ratio", "optimal_hit_ratio", "num_requests_running", "num_requests_waiting", "kv_cache_usage")
# Lines of growth by second, and the totals that grow.
RATES = {
    "read_bytes_per_second": "loaded_bytes",
    "stall_share": "stall_seconds",
    "prompt_tokens_per_second": "prompt_tokens",
    "generation_tokens_per_second": "generation_tokens",
}
RESPONSES = ("num_errors", "num_rate_limited", "num_client_errors")  # responses of the interval
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
LATENCIES = {"first_token": FIRST_TOKEN_BOUNDS, "inter_token": INTER_TOKEN_BOUNDS}
SERIES = (*GAUGES, *RATES, *RESPONSES, *(f"{name}_{each}" for name in LATENCIES for each in QUANTILES))

Totals = Mapping[str, Any]


class History:
    """A ring of points, one for each interval. Thread-safe.

    Its memory, some 100 KiB, is allocated at once and never grows.

    Args:
        read: returns the totals of live views, with ``responses`` and the ``cumulative`` counts of latencies.
        now: returns Unix time in seconds.
        clock: returns seconds of a monotonic clock.
    """

    def __init__(
        self,
        read: Callable[[], Totals],
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._read, self._now, self._clock = read, now, clock
        self._times = np.zeros(NUM_POINTS)
        self._points = np.full((NUM_POINTS, len(SERIES)), math.nan)
        self._num_recorded = 0
        self._recent: deque[tuple[float, Totals]] = deque(maxlen=NUM_RECENT)
        self._lock = threading.Lock()  # guards the fields above

    def record(self) -> None:
        """Add a point; the first call only begins the first interval. It may block."""
        at, totals, unix_time = self._clock(), self._read(), self._now()
        with self._lock:
            self._recent.append((at, totals))
            if len(self._recent) == 1:
                return
            place = self._num_recorded % NUM_POINTS
            # A system clock that is set back must not hide new points from clients that ask for later ones.
            self._times[place] = max(unix_time, self._times[place - 1] + LEAST_STEP_SECONDS)
            self._points[place] = self._point(at, totals)
            self._num_recorded += 1

    def lines(self, after: float) -> JsonObject:
        """Return the points whose Unix time is later, the oldest first."""
        with self._lock:
            first = max(0, self._num_recorded - NUM_POINTS)
            order = np.arange(first, self._num_recorded) % NUM_POINTS
            order = order[self._times[order] > after]
            times, points = self._times[order], self._points[order]
        return {
            "object": "history",
            "interval_seconds": INTERVAL_SECONDS,
            "times": times.round(3).tolist(),
            "series": {name: _values(points[:, column]) for column, name in enumerate(SERIES)},
        }

    def _point(self, at: float, totals: Totals) -> list[float]:
        before_at, before = self._recent[-2]
        _, minute_ago = self._recent[0]
        seconds = max(at - before_at, 1e-9)
        responses, responses_before = totals["responses"], before["responses"]
        return [
            *(math.nan if totals[name] is None else totals[name] for name in GAUGES),
            *(max(0.0, totals[name] - before[name]) / seconds for name in RATES.values()),
            *(responses[name] - responses_before[name] for name in RESPONSES),
            *(
                math.nan if (found := quantile(share, bounds, _growth(name, minute_ago, totals))) is None else found
                for name, bounds in LATENCIES.items()
                for share in QUANTILES.values()
            ),
        ]


def _growth(name: str, before: Totals, totals: Totals) -> list[int]:
    """Return the cumulative counts of what has come since; totals of a cluster fall when a replica is gone."""
    pairs = zip(before[name]["cumulative"], totals[name]["cumulative"], strict=True)
    return [*accumulate((max(0, after - earlier) for earlier, after in pairs), max)]


def _values(column: npt.NDArray[np.float64]) -> list[float | None]:
    """Return the values of a line in JSON, where the unknown is null."""
    return [None if math.isnan(value) else round(value, DECIMALS) for value in column.tolist()]
