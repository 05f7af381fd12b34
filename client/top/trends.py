"""Rates and heat over time, computed from the frames of a server."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from client.frames import ExpertFrame
from client.requests import RequestStatus
from client.top.requests_table import Speeds, speeds_between
from client.top.weights_table import Weights

WINDOW_SECONDS = 5.0  # window of the rates
HALF_LIFE_SECONDS = 5.0  # decay of the heat

Heat = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Rates:
    """Rates per second over the last seconds; ``stall_share`` is the share of time spent waiting for experts."""

    bytes_read: float = 0.0
    stall_share: float = 0.0
    prompt_tokens: float = 0.0
    generation_tokens: float = 0.0


@dataclass(frozen=True)
class View:
    """The data shown at one moment; ``heat`` has the shape of the frame's tokens."""

    frame: ExpertFrame
    rates: Rates
    heat: Heat
    requests: Sequence[RequestStatus] = ()
    speeds: Speeds = field(default_factory=dict)  # tokens per second of the requests
    weights: Weights | None = None  # variants and adapters, while they are shown


class Trends:
    """Collects the frames of one server with their arrival times, in seconds of a monotonic clock."""

    def __init__(self, frame: ExpertFrame, now: float):
        self._frames = deque([(now, frame)])
        hottest = max(map(max, frame.tokens), default=0) or 1
        # Show past traffic faintly until there is new traffic.
        self._heat = [[tokens / hottest for tokens in row] for row in frame.tokens]
        self._requests: Sequence[RequestStatus] = ()
        self._speeds: Speeds = {}
        self._weights: Weights | None = None

    @property
    def view(self) -> View:
        return View(
            self._frames[-1][1],
            self._rates(),
            self._heat,
            requests=self._requests,
            speeds=self._speeds,
            weights=self._weights,
        )

    def add(self, frame: ExpertFrame, now: float) -> None:
        """Add the next frame."""
        before, last = self._frames[-1]
        decay = 0.5 ** ((now - before) / HALF_LIFE_SECONDS)
        self._heat = [
            [heat * decay + max(0, new - old) for heat, old, new in zip(*rows, strict=True)]
            for rows in zip(self._heat, last.tokens, frame.tokens, strict=True)
        ]
        self._frames.append((now, frame))
        while len(self._frames) > 2 and now - self._frames[1][0] >= WINDOW_SECONDS:  # noqa: PLR2004  first and last
            self._frames.popleft()

    def add_requests(self, requests: Sequence[RequestStatus]) -> None:
        """Replace the list of requests."""
        self._speeds = speeds_between(self._requests, requests)
        self._requests = requests

    def add_weights(self, weights: Weights) -> None:
        """Replace the lists of variants and adapters."""
        self._weights = weights

    def _rates(self) -> Rates:
        (start, first), (end, last) = self._frames[0], self._frames[-1]
        if end <= start:
            return Rates()

        def rate(before: float, now: float) -> float:
            return max(0.0, now - before) / (end - start)  # totals of a cluster fall when a replica is gone

        return Rates(
            rate(first.loaded_bytes, last.loaded_bytes),
            min(1.0, rate(first.stall_seconds, last.stall_seconds)),
            rate(first.prompt_tokens, last.prompt_tokens),
            rate(first.generation_tokens, last.generation_tokens),
        )
