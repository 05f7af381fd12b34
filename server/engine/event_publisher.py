"""Publishing of events to the sinks of requests, and the end of requests."""

from __future__ import annotations

import logging
from collections.abc import Sequence as AbstractSequence

from expert_store import ExpertLoadError
from server.engine.deadline_watch import deadline_error
from server.engine.engine_statistics import EngineStatistics
from server.engine.interface import EngineError, GenerationFailedError, publish
from server.engine.latency_recording import record_event
from server.engine.postprocess import SequenceEvent
from server.engine.scheduler import Scheduled, Scheduler
from server.engine.sequence import Sequence

log = logging.getLogger(__name__)


class EventPublisher:
    """Publishes events, counts them, and removes sequences that end from the scheduler."""

    def __init__(self, scheduler: Scheduler, statistics: EngineStatistics):
        self._scheduler, self._statistics = scheduler, statistics

    def publish(self, items: AbstractSequence[SequenceEvent], now: float) -> None:
        """Publish the events of a step.

        Args:
            now: on the engine's clock.
        """
        for sequence, event in items:
            if isinstance(event, EngineError):
                self._remove(sequence, "error")
                log.error("request %s failed: %s", sequence.request.request_id, event)
                continue
            self._statistics.generation_tokens += event.num_generated > 0
            record_event(sequence, event, now, self._statistics.latencies)
            if event.finish_reason is not None:
                self._remove(sequence, event.finish_reason.value)
        publish([(sequence.sink, event) for sequence, event in items])

    def fail(self, sequence: Sequence, error: EngineError, reason: str = "error") -> None:
        """End a request with an error."""
        self._remove(sequence, reason)
        publish([(sequence.sink, error)])

    def fail_step(self, step: AbstractSequence[Scheduled], error: Exception) -> None:
        """End the requests of a step that failed; all others continue."""
        requests = ", ".join(item.sequence.request.request_id for item in step)
        if isinstance(error, ExpertLoadError):  # its message names the file and the cause
            log.error("a step failed, and with it request %s: %s", requests, error)
            reason = f"{error.key} can't be read"
        else:
            log.error("a step failed, and with it request %s: %s", requests, error, exc_info=error)
            reason = "the model failed to compute this request"
        for item in step:
            self.fail(item.sequence, GenerationFailedError(f"{reason}; see the log"))

    def drop_ended(self, now: float) -> None:
        """End the requests whose client has left or whose deadline has passed."""
        for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
            if sequence.is_late(now):  # first, because the deadline watch cancels streams, too
                self.fail(sequence, deadline_error(sequence), "deadline")
            elif sequence.sink.is_cancelled:
                self._remove(sequence, "abort")

    def _remove(self, sequence: Sequence, reason: str) -> None:
        self._scheduler.remove(sequence)
        weights = sequence.weights
        if weights is not None:
            weights.note_request(sequence.expert_usage, sequence.timeline, sequence.num_generated)
            weights.end()
        self._statistics.finished[reason] += 1
