"""What requests waited for: the queue, their first token, each further one, their end."""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence

from server.observability.statistics import Latencies

from .request import TokenEvent
from .scheduler import Scheduled
from .sequence import Sequence


def note_start(step: AbstractSequence[Scheduled], now: float, latencies: Latencies) -> None:
    """Sequences whose first step begins leave the queue; one that was preempted and comes again does not."""
    for item in step:
        sequence = item.sequence
        if sequence.started_at is None:
            sequence.started_at = now
            sequence.stream.queue_seconds = now - sequence.submitted_at
            latencies.queue.observe(sequence.stream.queue_seconds)


def note_event(sequence: Sequence, event: TokenEvent, now: float, latencies: Latencies) -> None:
    """A token, or the end, of a sequence; a prompt that is made a vector of has no token."""
    if event.num_generated > 0:
        if sequence.last_token_at is None:
            sequence.stream.first_token_seconds = now - sequence.submitted_at
            latencies.first_token.observe(sequence.stream.first_token_seconds)
        else:
            latencies.inter_token.observe(now - sequence.last_token_at)
        sequence.last_token_at = now
    if event.finish_reason is not None:
        latencies.whole.observe(now - sequence.submitted_at)
