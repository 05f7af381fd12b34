"""Publishing of events to the sinks of requests, and the end of requests."""

from __future__ import annotations

import logging
from collections.abc import Sequence as AbstractSequence
from functools import partial

from expert_store import ExpertLoadError
from server.deferred_work import DeferredWork
from server.engine.deadline_watch import deadline_error
from server.engine.engine_statistics import EngineStatistics
from server.engine.interface import EngineError, EventSink, GenerationFailedError, TokenEvent, publish
from server.engine.latency_recording import record_event
from server.engine.postprocess import SequenceEvent
from server.engine.scheduler import Scheduled, Scheduler
from server.engine.sequence import Sequence
from server.engine.token_events import add_text
from server.panics import panics_as_errors

log = logging.getLogger(__name__)


class EventPublisher:
    """Publishes events, counts them, and removes sequences that end from the scheduler.

    Args:
        deferred: sends events while the next step is computed; None if they are sent at once.
    """

    def __init__(self, scheduler: Scheduler, statistics: EngineStatistics, deferred: DeferredWork | None = None):
        self._scheduler, self._statistics, self._deferred = scheduler, statistics, deferred
        self._failed: list[Sequence] = []  # those whose text failed, until they are removed

    def publish(self, items: AbstractSequence[SequenceEvent], now: float) -> None:
        """Publish the events of a step.

        Args:
            now: on the engine's clock.
        """
        if self._failed:
            items = [item for item in items if item[0] not in self._failed]
        for sequence, event in items:
            if isinstance(event, EngineError):
                self._remove(sequence, "error")
                log.error("request %s failed: %s", sequence.request.request_id, event)
                continue
            self._statistics.generation_tokens += event.num_generated > 0
            record_event(sequence, event, now, self._statistics.latencies)
            if event.finish_reason is not None:
                self._remove(sequence, event.finish_reason.value)
        if self._deferred is None:
            self._send(items)
        else:
            self._deferred.add(partial(self._send, items))

    def send_deferred(self) -> None:
        """Send the events that wait for the next step."""
        if self._deferred is not None:
            self._deferred.run()

    def fail(self, sequence: Sequence, error: EngineError, reason: str = "error") -> None:
        """End a request with an error."""
        self.send_deferred()
        has_error = sequence in self._failed
        if has_error:
            self._failed.remove(sequence)
        self._remove(sequence, reason)
        if not has_error:
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
        """End the requests whose client has left, whose deadline has passed or whose text failed.

        Those of a pass stay until it ends or is cancelled.
        """
        while self._failed:
            self._remove(self._failed.pop(), "error")
        for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
            if sequence.in_pass is not None:
                continue
            if sequence.is_late(now):  # first, because the deadline watch cancels streams, too
                self.fail(sequence, deadline_error(sequence), "deadline")
            elif sequence.sink.is_cancelled:
                self._remove(sequence, "abort")

    def _send(self, items: AbstractSequence[SequenceEvent]) -> None:
        """Send events; those that lack their text get it now."""
        sent: list[tuple[EventSink, TokenEvent | EngineError]] = []
        for sequence, event in items:
            if isinstance(event, TokenEvent) and event.lacks_text:
                sent.append((sequence.sink, self._with_text(sequence, event)))
            else:
                sent.append((sequence.sink, event))
        publish(sent)

    def _with_text(self, sequence: Sequence, event: TokenEvent) -> TokenEvent | EngineError:
        """Return the event with its text, or an error, with which the sequence ends before the next step."""
        try:
            with panics_as_errors():
                add_text(sequence, event)
        except RuntimeError:
            log.exception("request %s failed: its text can't be made", sequence.request.request_id)
            self._failed.append(sequence)
            return GenerationFailedError("the model failed to compute this request; see the log")
        return event

    def _remove(self, sequence: Sequence, reason: str) -> None:
        self._scheduler.remove(sequence)
        weights = sequence.weights
        if weights is not None:
            weights.note_request(sequence.expert_usage, sequence.timeline, sequence.num_generated)
            weights.end()
        if reason != "stop" or not sequence.request.is_internal:
            self._statistics.finished[reason] += 1
