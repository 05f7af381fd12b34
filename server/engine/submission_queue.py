"""Handover of submitted requests from the event loops to the engine's thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from weakref import WeakSet

from server.engine.interface import EngineUnavailableError, EventSink, QueueFullError
from server.engine.scheduler import Scheduler
from server.engine.sequence import Sequence

RETRY_SECONDS = 0.1


class SubmissionQueue:
    """Sequences on their way to the scheduler, and the sinks whose readers may still wait.

    Any thread may call ``put``, ``wake``, ``unfinished`` and ``close``; the other methods are for the engine's thread.

    Args:
        scheduler: takes the sequences.
        max_queued: sequences that may wait, here and in the scheduler together.
    """

    def __init__(self, scheduler: Scheduler, max_queued: int):
        self.is_open = False
        self.num_submitted = 0
        self._scheduler, self._max_queued = scheduler, max_queued
        self._submitted: list[Sequence] = []
        self._scheduled: list[Sequence] = []  # all sequences of the scheduler when the last step began
        self._sinks: WeakSet[EventSink] = WeakSet()
        self._is_woken = False
        self._changed = threading.Condition()  # guards everything above but the scheduler

    def open(self) -> None:
        self.is_open = True

    def put(self, make_sequence: Callable[[int], Sequence]) -> None:
        """Add a sequence.

        Args:
            make_sequence: makes the sequence from its arrival number.

        Raises:
            QueueFullError: too many sequences wait.
            EngineUnavailableError: the queue is closed.
        """
        with self._changed:
            if not self.is_open:
                raise EngineUnavailableError("the server takes no more requests")
            if len(self._submitted) + len(self._scheduler.waiting) >= self._max_queued:
                raise QueueFullError(f"{self._max_queued} requests are waiting; try again later")
            self.num_submitted += 1
            sequence = make_sequence(self.num_submitted)
            self._submitted.append(sequence)
            self._sinks.add(sequence.sink)
            self._changed.notify()

    def unfinished(self) -> list[Sequence]:
        """Return the sequences that the scheduler had when the last step began, and those submitted since."""
        with self._changed:
            return [*self._scheduled, *self._submitted]

    def wake(self) -> None:
        """Let the engine's thread begin a step now, even without a sequence that could run."""
        with self._changed:
            self._is_woken = True
            self._changed.notify()

    def move_to_scheduler(self, timeout_seconds: float | None, *, can_run: bool = True) -> bool:
        """Wait until there is work, ``wake`` or ``close``, and add submitted sequences to the scheduler.

        Args:
            can_run: False if the scheduler's sequences could not run when it last tried. They are tried again after
                ``wake``, and every ``RETRY_SECONDS``, as one may have been cancelled.

        Returns:
            False if the timeout passed and there is no work.
        """
        scheduler = self._scheduler
        with self._changed:
            self._scheduled = [*scheduler.running, *scheduler.waiting]
            waits = bool(self._scheduled) and not can_run
            if waits:
                timeout_seconds = min(timeout_seconds or RETRY_SECONDS, RETRY_SECONDS)
            has_work = self._changed.wait_for(
                lambda: not self.is_open or self._submitted or self._is_woken or (self._scheduled and not waits),
                timeout_seconds,
            )
            self._is_woken = False
            if not has_work and not waits:
                return False
            for sequence in self._submitted:
                scheduler.add(sequence)
            self._scheduled += self._submitted
            self._submitted.clear()
        return True

    def close(self) -> list[EventSink]:
        """Refuse further sequences, wake the engine's thread, and return the sinks whose readers may still wait."""
        with self._changed:
            self.is_open = False
            self._changed.notify()
            return list(self._sinks)

    def drain(self) -> list[Sequence]:
        """Close the queue and return all unfinished sequences, those of the scheduler included."""
        with self._changed:
            self.is_open = False
            unfinished = [*self._submitted, *self._scheduler.running, *self._scheduler.waiting]
            self._submitted, self._scheduled = [], []
        return unfinished
