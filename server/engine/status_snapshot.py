"""Snapshots of the progress of requests, for other threads than the engine's."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from server.engine.interface import RequestState, RequestStatus
from server.engine.sequence import Sequence


def snapshot_statuses(
    running: Iterable[Sequence], others: Iterable[Sequence], is_held: Callable[[Sequence], bool], now: float
) -> list[RequestStatus]:
    """Return the status of each running sequence, then of each other one, unless its client has left.

    Args:
        running: a copy of the engine's list, as is ``others``. A sequence may be in both, and is returned once.
        is_held: returns whether a decoding sequence waits for its slice.
        now: on the engine's clock.
    """
    found = {sequence: _running_state(sequence, is_held) for sequence in running}
    states: dict[Sequence, RequestState] = found | {sequence: "waiting" for sequence in others if sequence not in found}
    return [_status(sequence, state, now) for sequence, state in states.items() if not sequence.sink.is_cancelled]


def _running_state(sequence: Sequence, is_held: Callable[[Sequence], bool]) -> RequestState:
    if sequence.num_uncached > 1 or not sequence.num_generated:
        return "prefill"
    return "held" if is_held(sequence) else "decode"


def _status(sequence: Sequence, state: RequestState, now: float) -> RequestStatus:
    request, timeline = sequence.request, sequence.timeline
    started = now if timeline.started_at is None else timeline.started_at
    return RequestStatus(
        request.request_id,
        state,
        request.priority,
        len(request.prompt_ids),
        sequence.num_computed,
        sequence.num_generated,
        request.sampling.max_tokens,
        timeline.num_preemptions,
        now - timeline.submitted_at,
        started - timeline.submitted_at,
        sequence.expert_usage,
    )
