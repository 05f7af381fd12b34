"""Costs and latencies of requests, summed by the weights that they used."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from server.engine.histogram import Histogram
from server.engine.interface import ExpertUsage, Timeline

# Bounds in seconds: fewer than those of all requests, because each name has a series for each of them.
FIRST_TOKEN_BOUNDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
OUTPUT_TOKEN_BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
REQUEST_BOUNDS = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
MOST_NAMES = 200  # that are shown, with some forty numbers each


@dataclass
class RequestCosts:
    """Sums over the ended requests of one name; each choice of a request counts by itself.

    ``request`` has those that ended with ``stop`` or ``length``, because cancelled and failed ones would look fast.
    """

    num_ended: int = 0
    usage: ExpertUsage = field(default_factory=ExpertUsage)
    first_token: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_BOUNDS))  # from submission
    output_token: Histogram = field(default_factory=lambda: Histogram(OUTPUT_TOKEN_BOUNDS))  # mean of a request
    request: Histogram = field(default_factory=lambda: Histogram(REQUEST_BOUNDS))  # from submission to the end

    def add(self, usage: ExpertUsage, timeline: Timeline, num_generated: int) -> None:
        """Add a request that has ended."""
        self.num_ended += 1
        self.usage += usage
        if timeline.first_token_seconds is not None:
            self.first_token.observe(timeline.first_token_seconds)
        if timeline.first_token_at is not None and timeline.last_token_at is not None and num_generated > 1:
            self.output_token.observe((timeline.last_token_at - timeline.first_token_at) / (num_generated - 1))
        if timeline.ended_at is not None:
            self.request.observe(timeline.ended_at - timeline.submitted_at)


class CostsByName:
    """The costs of the names under which weights are loaded. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the costs while one is added or dropped
        self._costs: dict[str, RequestCosts] = {}

    def add(self, names: Iterable[str], usage: ExpertUsage, timeline: Timeline, num_generated: int) -> None:
        """Add a request that has ended to each of the names that it used."""
        with self._lock:
            for name in {*names}:
                self._costs.setdefault(name, RequestCosts()).add(usage, timeline, num_generated)

    def drop(self, name: str) -> None:
        """Forget a name that was unloaded."""
        with self._lock:
            self._costs.pop(name, None)

    def of(self, names: Iterable[str]) -> list[tuple[str, RequestCosts]]:
        """Return the costs of loaded names, zeros included: of the ``MOST_NAMES`` with the most requests."""
        with self._lock:
            found = [(name, self._costs.get(name) or RequestCosts()) for name in names]
        busiest = sorted(found, key=lambda each: each[1].num_ended, reverse=True)[:MOST_NAMES]
        return found if len(found) <= MOST_NAMES else busiest
