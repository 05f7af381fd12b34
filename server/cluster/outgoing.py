"""Parts of the answers that a replica sends: events in items, times by any clock, experts of all tokens together."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from server.cluster.signatures import Signature
from server.engine.interface import Timeline, TokenEvent, TokenStream

ITEM_SECONDS = 0.02  # between two items of a stream, at least
POLL_SECONDS = 0.004


class ExpertCounts:
    """Counts the tokens of a request by expert."""

    def __init__(self, shape: tuple[int, int]):
        self._shape = shape
        self._counts: npt.NDArray[np.int64] | None = None

    def note(self, events: list[TokenEvent]) -> None:
        for event in events:
            if event.experts is None or len(event.experts) != self._shape[0]:
                continue
            if self._counts is None:
                self._counts = np.zeros(self._shape, dtype=np.int64)
            rows, slots = np.nonzero(event.experts >= 0)
            np.add.at(self._counts, (rows, event.experts[rows, slots]), 1)

    def signature(self) -> Signature | None:
        return None if self._counts is None else Signature.from_counts(self._counts)


async def gather(stream: TokenStream) -> None:
    """Let the next tokens of a fast stream come together: an item takes more processor time than a small model's token.

    Tokens that take longer than ``ITEM_SECONDS`` each, the first one and the last one go at once.
    """
    ends_at = time.monotonic() + ITEM_SECONDS
    while stream.timeline.ended_at is None and (left := ends_at - time.monotonic()) > 0:  # noqa: ASYNC110  a thread ends it
        await asyncio.sleep(min(left, POLL_SECONDS))


def without_experts(event: TokenEvent) -> TokenEvent:
    return event if event.experts is None else replace(event, experts=None)


def since_submission(timeline: Timeline) -> Timeline:
    """Return a timeline whose times are counted from the submission, as another machine has another clock."""

    def since(at: float | None) -> float | None:
        return None if at is None else at - timeline.submitted_at

    return replace(
        timeline,
        submitted_at=0.0,
        started_at=since(timeline.started_at),
        first_token_at=since(timeline.first_token_at),
        last_token_at=since(timeline.last_token_at),
        ended_at=since(timeline.ended_at),
    )
