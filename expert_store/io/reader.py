"""Threads that read from sources: demands first, then prefetches, then what has time."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

import torch

from expert_store.arena import page_aligned
from expert_store.errors import BudgetError, StoreClosedError
from expert_store.io.read_watch import ReadWatch
from expert_store.sources.base import Bytes, Source
from expert_store.sources.open_sources import OpenSources

log = logging.getLogger(__name__)

SCRATCH_BYTES = 2 << 20  # one huge page

Done = Callable[[Exception | None], None]
Part = Callable[[Bytes], None]  # reads a part of a job, in a thread whose scratch memory is given


class Priority(IntEnum):
    """Urgency of a read."""

    DEMAND = 0  # somebody waits for it
    PREFETCH = 1  # somebody will probably want it soon
    BACKGROUND = 2  # whenever nothing else is to be read


class ReadJob(Protocol):
    """A read; ``str`` gives its name. Jobs are told apart by identity."""

    priority: Priority

    def __hash__(self) -> int: ...

    @property
    def sources(self) -> OpenSources:
        """The open sources that it reads; they stay open until it is done."""

    @property
    def done(self) -> Done:
        """Called once, by the thread that has read: with None, or with what went wrong."""

    def parts(self) -> Sequence[Part]:
        """Return the parts of the read, for several threads at once; called by the thread that begins it.

        A part raises an exception of any kind, for ``done``.
        """


@dataclass(eq=False)
class _BegunJob:
    """A job that threads read."""

    job: ReadJob
    priority: Priority  # with which it began
    is_divided: bool = False
    parts: deque[Part] = field(default_factory=deque)  # that no thread has begun
    num_threads: int = 1
    error: Exception | None = None


class SourceReader:
    """A pool of threads that sleep in the kernel while they read. Safe to call from any thread.

    ``submit`` returns at once. A reader thread calls ``job.done(None)`` when the job is read, or ``job.done(error)``
    when it could not be. Jobs start in the order of their priorities, then first come, first served. Those that are no
    demands never take the last thread. A thread that finds no job to start helps with the parts of one that has begun.

    Args:
        on_death: called with the reason if a thread dies.
        open_sources: returns the sources to watch for changes.

    Raises:
        BudgetError: there is no memory to read with.
    """

    def __init__(
        self,
        num_threads: int,
        on_death: Callable[[str], None],
        open_sources: Callable[[], Iterable[OpenSources]] = tuple,
    ):
        self._waiting: dict[Priority, deque[ReadJob]] = {priority: deque() for priority in Priority}
        self._num_running = dict.fromkeys(Priority, 0)  # threads
        self._divided: list[_BegunJob] = []  # that may have parts left
        self._is_closing = False
        self._changed = threading.Condition()  # guards the fields above; taken inside the store's lock
        self._on_death = on_death
        self._threads = [
            threading.Thread(target=self._work, args=(scratch,), name=f"expert-reader-{index}", daemon=True)
            for index, scratch in enumerate(_scratch_memory(num_threads))
        ]
        self._max_undemanded = max(1, num_threads - 1)
        self._watch = ReadWatch(num_threads, open_sources)
        for thread in self._threads:
            thread.start()

    def takes(self, priority: Priority) -> bool:
        """Return True if a read submitted now, which is no demand, would find the storage idle, or soon."""
        with self._changed:
            if any(self._waiting[urgent] for urgent in Priority if urgent < max(priority, Priority.PREFETCH)):
                return False
            return len(self._waiting[priority]) + self._num_undemanded < len(self._threads)

    @property
    def has_stuck_read(self) -> bool:
        """True while a read does not return."""
        return self._watch.has_stuck_read

    @property
    def changed_sources(self) -> frozenset[Source]:
        """The sources that were written to since they were opened."""
        return self._watch.changed

    def is_stuck(self, job: ReadJob) -> bool:
        """Return True if a read does not return, or can't begin because no other does."""
        return self._watch.is_stuck(job)

    def submit(self, job: ReadJob) -> None:
        """Queue a read and return at once."""
        with self._changed:
            self._waiting[job.priority].append(job)
            self._changed.notify()

    def promote(self, job: ReadJob) -> None:
        """Turn a read that has not begun into a demand, as a lease waits for it."""
        with self._changed:
            if job.priority is not Priority.DEMAND and job in self._waiting[job.priority]:
                self._waiting[job.priority].remove(job)
                job.priority = Priority.DEMAND
                self._waiting[job.priority].append(job)
                self._changed.notify()

    def cancel(self, job: ReadJob) -> bool:
        """Remove a job that has not begun, without a call of its ``done``; False if it has begun."""
        with self._changed:
            waiting = self._waiting[job.priority]
            if job not in waiting:
                return False
            waiting.remove(job)
            return True

    def close(self) -> None:
        """Finish the reads that have begun, fail the others and stop the threads."""
        with self._changed:
            self._is_closing = True
            left = [job for waiting in self._waiting.values() for job in waiting]
            for waiting in self._waiting.values():
                waiting.clear()
            self._changed.notify_all()
        for job in left:
            job.done(StoreClosedError("the expert store was closed"))
        for thread in self._threads:
            thread.join()
        self._watch.close()

    @property
    def _num_undemanded(self) -> int:
        return sum(count for priority, count in self._num_running.items() if priority is not Priority.DEMAND)

    def _work(self, scratch: Bytes) -> None:
        try:
            self._read_all(scratch)
        except BaseException as error:
            log.critical("a thread that reads experts died", exc_info=error)
            self._on_death(f"a thread that reads experts died ({error!r})")

    def _read_all(self, scratch: Bytes) -> None:
        torch.set_num_threads(1)  # for the assembly of parameters; more would compete with compute
        while (begun := self._next()) is not None:
            with begun.job.sources.reading():
                if not begun.is_divided:
                    self._divide(begun)
                while (part := self._take_part(begun)) is not None:
                    try:
                        with self._watch.running(begun.job):
                            part(scratch)
                    except Exception as error:  # noqa: BLE001  every error has to reach the leases that wait
                        self._fail(begun, error)
            self._leave(begun)

    def _next(self) -> _BegunJob | None:
        with self._changed:
            while True:
                for priority, waiting in self._waiting.items():
                    if waiting and self._is_free(priority):
                        self._num_running[priority] += 1
                        return _BegunJob(waiting.popleft(), priority)
                if self._is_closing:
                    return None
                for begun in self._divided:
                    if begun.parts and self._is_free(begun.priority):
                        self._num_running[begun.priority] += 1
                        begun.num_threads += 1
                        return begun
                self._changed.wait()

    def _is_free(self, priority: Priority) -> bool:
        return priority is Priority.DEMAND or self._num_undemanded < self._max_undemanded

    def _divide(self, begun: _BegunJob) -> None:
        begun.is_divided = True
        try:
            parts = begun.job.parts()
        except Exception as error:  # noqa: BLE001  as above
            self._fail(begun, error)
            return
        with self._changed:
            begun.parts.extend(parts)
            if len(parts) > 1:
                self._divided.append(begun)
                self._changed.notify(len(parts) - 1)

    def _take_part(self, begun: _BegunJob) -> Part | None:
        with self._changed:
            return begun.parts.popleft() if begun.parts else None

    def _fail(self, begun: _BegunJob, error: Exception) -> None:
        with self._changed:
            begun.error = begun.error or error
            begun.parts.clear()

    def _leave(self, begun: _BegunJob) -> None:
        """End a thread's work for a job; the last thread calls its ``done``."""
        with self._changed:
            self._num_running[begun.priority] -= 1
            begun.num_threads -= 1
            is_done = begun.num_threads == 0
            if is_done and begun in self._divided:
                self._divided.remove(begun)
            if begun.priority is not Priority.DEMAND:
                self._changed.notify()
        if is_done:
            begun.job.done(begun.error)


def _scratch_memory(count: int) -> list[Bytes]:
    try:
        return [page_aligned(SCRATCH_BYTES) for _ in range(count)]
    except OSError as error:
        raise BudgetError(f"cannot allocate memory to read experts with: {error.strerror}; free some memory") from error
