"""Parts of the answers that a replica sends: events in items, times by any clock, experts of all tokens together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from server.cluster.signatures import Signature
from server.engine.interface import Timeline, TokenEvent

ITEM_SECONDS, MAX_ITEM_SECONDS = 0.02, 0.1  # between two items of a fast stream
ITEMS_PER_SECOND = 100.0  # of a replica, for each of which three processes take some 0.3 ms
FAST_SECONDS = 0.02  # tokens that take longer go one by one


class ExpertCounts:
    """Counts the tokens of a request by expert."""

    def __init__(self, shape: tuple[int, int]):
        self._shape = shape
        self._firsts = np.arange(shape[0])[:, np.newaxis] * shape[1]  # of each layer, among all experts
        self._counts: npt.NDArray[np.int64] | None = None

    def note(self, events: Sequence[TokenEvent]) -> None:
        chosen = [event.experts for event in events if event.experts is not None]
        chosen = [experts for experts in chosen if len(experts) == self._shape[0]]
        if chosen:
            experts = np.stack(chosen)
            counts = np.bincount((experts + self._firsts)[experts >= 0], minlength=self._shape[0] * self._shape[1])
            self._counts = counts if self._counts is None else self._counts + counts

    def signature(self) -> Signature | None:
        return None if self._counts is None else Signature.from_counts(self._counts.reshape(self._shape))


class Pace:
    """Decides for how long the tokens of a stream come together: an item costs more than a small model's token."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sent_at: float | None = None

    def seconds(self, num_tokens: int, num_streams: int) -> float:
        """Return for how long to wait after an item: until the same time for all streams, as they share items.

        Args:
            num_tokens: in the item.
            num_streams: that the replica sends.
        """
        now, before = self._clock(), self._sent_at
        self._sent_at = now
        if before is not None and now - before > FAST_SECONDS * num_tokens:
            return 0.0
        interval = ITEM_SECONDS  # as long as nothing is known
        if before is not None:
            interval = min(MAX_ITEM_SECONDS, max(ITEM_SECONDS, num_streams / ITEMS_PER_SECOND))
        return interval - now % interval


def without_experts(event: TokenEvent) -> TokenEvent:
    return event if event.experts is None else replace(event, experts=None)


def since_submission(timeline: Timeline) -> Timeline:
    """Return a timeline whose times are counted from the submission, as another machine has another clock."""
    return moved(timeline, -timeline.submitted_at)


def moved(timeline: Timeline, seconds: float) -> Timeline:
    """Return a timeline in which all is so many seconds later."""

    def later(at: float | None) -> float | None:
        return None if at is None else at + seconds

    return replace(
        timeline,
        submitted_at=timeline.submitted_at + seconds,
        started_at=later(timeline.started_at),
        first_token_at=later(timeline.first_token_at),
        last_token_at=later(timeline.last_token_at),
        ended_at=later(timeline.ended_at),
        passes=[
            replace(each, started_at=each.started_at + seconds, ended_at=each.ended_at + seconds)
            for each in timeline.passes
        ],
        stalls=[
            replace(stall, started_at=stall.started_at + seconds, ended_at=stall.ended_at + seconds)
            for stall in timeline.stalls
        ],
    )
