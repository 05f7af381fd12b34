"""Totals of a server become rates, and tokens become heat that fades."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from client.frames import ExpertFrame

WINDOW_SECONDS = 5.0  # of the rates
HALF_LIFE_SECONDS = 5.0  # of the heat

Heat = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Rates:
    """Per second, over the last few seconds; ``stall_share`` is the part of the time that compute waited."""

    bytes_read: float = 0.0
    stall_share: float = 0.0
    prompt_tokens: float = 0.0
    generation_tokens: float = 0.0


@dataclass(frozen=True)
class View:
    """Everything that is shown at one moment; ``heat`` has the shape of the frame's tokens."""

    frame: ExpertFrame
    rates: Rates
    heat: Heat


class Trends:
    """What the frames of one server say together, each with the seconds of some clock when it came."""

    def __init__(self, frame: ExpertFrame, now: float):
        self._frames = deque([(now, frame)])
        hottest = max(map(max, frame.tokens), default=0) or 1
        # Until something goes through the server, the past is seen faintly.
        self._heat = [[tokens / hottest for tokens in row] for row in frame.tokens]

    @property
    def view(self) -> View:
        return View(self._frames[-1][1], self._rates(), self._heat)

    def add(self, frame: ExpertFrame, now: float) -> None:
        """Take the next frame."""
        before, last = self._frames[-1]
        fading = 0.5 ** ((now - before) / HALF_LIFE_SECONDS)
        self._heat = [
            [heat * fading + new - old for heat, old, new in zip(*rows, strict=True)]
            for rows in zip(self._heat, last.tokens, frame.tokens, strict=True)
        ]
        self._frames.append((now, frame))
        while len(self._frames) > 2 and now - self._frames[1][0] >= WINDOW_SECONDS:  # noqa: PLR2004  both ends
            self._frames.popleft()

    def _rates(self) -> Rates:
        (start, first), (end, last) = self._frames[0], self._frames[-1]
        if end <= start:
            return Rates()
        seconds = end - start
        return Rates(
            (last.loaded_bytes - first.loaded_bytes) / seconds,
            min(1.0, (last.stall_seconds - first.stall_seconds) / seconds),
            (last.prompt_tokens - first.prompt_tokens) / seconds,
            (last.generation_tokens - first.generation_tokens) / seconds,
        )
