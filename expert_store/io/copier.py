"""Copies between host and device, on one thread in the order of submission."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch

from expert_store.io.device_memory import Device, Event

MAX_IN_FLIGHT = 4

log = logging.getLogger(__name__)


@dataclass(eq=False)
class CopyJob:
    """One copy; ``on_queued(event)`` is called when it is queued on the device, ``on_done(error)`` at its end."""

    source: torch.Tensor
    target: torch.Tensor
    after: Event  # the copy begins after it
    on_queued: Callable[[Event], None]
    on_done: Callable[[Exception | None], None]
    prepare: Callable[[], None] | None = None  # called before the copy, in its thread


class Copier:
    """Copies in the order of submission, so that a write-back has left its slot before another expert enters it.

    Args:
        on_death: called with the reason if the thread dies.
    """

    def __init__(self, device: Device, on_death: Callable[[str], None]):
        self._device, self._on_death = device, on_death
        self._jobs: queue.SimpleQueue[CopyJob | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="expert-copier", daemon=True)
        self._thread.start()

    def submit(self, job: CopyJob) -> None:
        """Queue a copy and return at once."""
        self._jobs.put(job)

    def close(self) -> None:
        """Finish all submitted copies, then stop the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        try:
            self._copy_all()
        except BaseException as error:
            log.critical("the thread that copies experts died", exc_info=error)
            self._on_death(f"the thread that copies experts died ({error!r})")

    def _copy_all(self) -> None:
        in_flight: deque[tuple[CopyJob, Event]] = deque()
        is_open = True
        while is_open or in_flight:
            if in_flight and (not is_open or len(in_flight) == MAX_IN_FLIGHT or self._jobs.empty()):
                job, event = in_flight.popleft()
                self._end(job, event)
                continue
            next_job = self._jobs.get()
            if next_job is None:
                is_open = False
                continue
            try:
                if next_job.prepare is not None:
                    next_job.prepare()
                event = self._device.copy(next_job.source, next_job.target, next_job.after)
            except Exception as error:  # noqa: BLE001  every error has to reach the leases that wait
                next_job.on_done(error)
            else:
                next_job.on_queued(event)
                in_flight.append((next_job, event))

    def _end(self, job: CopyJob, event: Event) -> None:
        try:
            self._device.wait(event)
        except Exception as error:  # noqa: BLE001  as above
            job.on_done(error)
        else:
            job.on_done(None)
