"""What requests waited for: the queue, experts, their first token, each further one, their end."""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from heapq import nlargest

from server.model.stalls import Stall
from server.observability.statistics import Latencies

from .request import TokenEvent
from .scheduler import Scheduled
from .sequence import Sequence

MAX_STALLS = 16  # that are kept of a request


def note_start(step: AbstractSequence[Scheduled], now: float, latencies: Latencies) -> None:
    """Sequences whose first step begins leave the queue; one that was preempted and comes again does not."""
    for item in step:
        timeline = item.sequence.timeline
        if timeline.started_at is None:
            timeline.started_at = now
            latencies.queue.observe(now - timeline.submitted_at)


def note_stalls(step: AbstractSequence[Scheduled], stalls: AbstractSequence[Stall]) -> None:
    """Whoever takes part in a step waits with it; the longest stalls are kept for those that ask for them."""
    for item in step if stalls else ():
        if item.sequence.request.keeps_stalls:
            timeline = item.sequence.timeline
            timeline.stalls = nlargest(MAX_STALLS, [*timeline.stalls, *stalls], key=lambda stall: stall.seconds)


def note_event(sequence: Sequence, event: TokenEvent, now: float, latencies: Latencies) -> None:
    """A token, or the end, of a sequence; a prompt that is made a vector of has no token."""
    timeline = sequence.timeline
    if event.num_generated > 0:
        if timeline.last_token_at is None:
            timeline.first_token_at, timeline.first_usage = now, sequence.expert_usage
            latencies.first_token.observe(now - timeline.submitted_at)
        else:
            latencies.inter_token.observe(now - timeline.last_token_at)
        timeline.last_token_at = now
    if event.finish_reason is not None:
        timeline.ended_at, timeline.last_usage = now, event.expert_usage
        latencies.whole.observe(now - timeline.submitted_at)
