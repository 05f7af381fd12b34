"""Deadlines during a step that does not end, such as one that waits for a disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from server.engine.interface import DeadlineExceededError, publish
from server.engine.sequence import Sequence

WATCH_SECONDS = 0.25  # between two looks
LONG_STEP_SECONDS = 1.0  # shorter steps leave deadlines to the engine, which looks at them between steps


def deadline_error(sequence: Sequence) -> DeadlineExceededError:
    return DeadlineExceededError(f"the request was not done within {sequence.request.deadline_seconds:g} seconds")


class DeadlineWatch:
    """Ends late requests in a thread of its own while the engine's thread is in a long step.

    It sends their error and marks them as cancelled; the engine's thread removes them after its step.

    Args:
        unfinished: returns all sequences of the engine; called from this thread.
        clock: the engine's clock.
    """

    def __init__(self, unfinished: Callable[[], Iterable[Sequence]], clock: Callable[[], float]):
        self._unfinished, self._clock = unfinished, clock
        self._step_began: float | None = None  # None between steps
        self._is_over = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._work, name="deadlines", daemon=True).start()

    def stop(self) -> None:
        self._is_over.set()

    def begin_step(self) -> None:
        self._step_began = time.monotonic()

    def end_step(self) -> None:
        self._step_began = None

    def _work(self) -> None:
        while not self._is_over.wait(WATCH_SECONDS):
            began = self._step_began
            if began is not None and time.monotonic() - began > LONG_STEP_SECONDS:
                self._end_late(self._clock())

    def _end_late(self, now: float) -> None:
        for sequence in self._unfinished():
            if sequence.is_late(now) and not sequence.sink.is_cancelled:
                publish([(sequence.sink, deadline_error(sequence))])
                sequence.sink.cancel()
