"""Recording of when requests start, stall, get tokens and end."""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from heapq import nlargest

from server.engine.engine_statistics import Latencies
from server.engine.interface import TokenEvent
from server.engine.scheduler import Scheduled
from server.engine.sequence import Sequence
from server.model.stalls import Stall

MAX_STALLS = 16  # stalls kept of a request


def record_start(step: AbstractSequence[Scheduled], now: float, latencies: Latencies) -> None:
    """Record the first step of each sequence. A preempted sequence that runs again keeps its first start."""
    for item in step:
        timeline = item.sequence.timeline
        if timeline.started_at is None:
            timeline.started_at = now
            if not item.sequence.request.is_internal:
                latencies.queue.observe(now - timeline.submitted_at)


def record_stalls(step: AbstractSequence[Scheduled], stalls: AbstractSequence[Stall]) -> None:
    """Keep the longest stalls of each sequence that asks for them; a stall delays all sequences of the step."""
    for item in step if stalls else ():
        if item.sequence.request.keeps_stalls:
            timeline = item.sequence.timeline
            timeline.stalls = nlargest(MAX_STALLS, [*timeline.stalls, *stalls], key=lambda stall: stall.seconds)


def record_event(sequence: Sequence, event: TokenEvent, now: float, latencies: Latencies) -> None:
    """Record a token or the end of a sequence. An embedding has an end but no token."""
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
        if not sequence.request.is_internal:
            latencies.request.observe(now - timeline.submitted_at)
