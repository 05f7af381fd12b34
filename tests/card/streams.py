"""Streams and events of the card, and which operation is ordered after which.

Each stream numbers its operations. A clock says for each stream up to which operation all is known to be over; streams,
events and threads of the host have one. Compute happens at once, since its results are needed; copies on streams other
than the default one happen when something that is ordered after them does.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Self

import torch

from tests.card.counts import contexts, count_sync, fails, lock

Clock = dict["Stream", int]

local = threading.local()  # the current device and stream of a thread, and its clock
told: Clock = {}  # what a thread has learnt by waiting for a whole stream: others hear of it by locks


def merge(clock: Clock, other: Clock) -> None:
    for stream, count in other.items():
        clock[stream] = max(clock.get(stream, 0), count)


def host_clock() -> Clock:
    clock: Clock = local.__dict__.setdefault("clock", {})
    return clock


def current_index() -> int:
    return int(getattr(local, "index", 0))


def index_of(device: Any) -> int:
    """Return the number of a device, given in any way that torch admits."""
    if device is None:
        return current_index()
    if isinstance(device, int):
        return device
    index = torch.device(device).index
    return current_index() if index is None else index


def touch_context(index: int) -> None:
    with lock:
        contexts[index, threading.current_thread().name] += 1


class Stream:
    """Operations in order."""

    def __init__(self, device: Any = None, priority: int = 0):
        del priority
        self.device = torch.device("cuda", index_of(device))
        self.device_index = self.device.index
        self.count = 0  # operations so far
        self.clock: Clock = {}
        self._late: deque[tuple[int, Callable[[], None]]] = deque()
        self.cuda_stream = self.stream_id = id(self)

    def begin(self) -> int:
        """Begin an operation that happens now, after all that it is ordered after; returns its number."""
        number = self.begin_late()
        self.catch_up()
        return number

    def begin_late(self, operation: Callable[[], None] | None = None) -> int:
        """Begin an operation; with one given, it happens later."""
        touch_context(self.device.index)
        merge(self.clock, host_clock())
        merge(self.clock, told)
        self.count += 1
        self.clock[self] = self.count
        if operation is not None:
            self._late.append((self.count, operation))
        return self.count

    def catch_up(self) -> None:
        """Let everything happen that this stream's next operation is ordered after."""
        for stream, count in self.clock.items():
            stream.run_until(count)

    def run_until(self, count: int) -> None:
        while self._late and self._late[0][0] <= count:
            self._late.popleft()[1]()

    def has_run(self, count: int) -> bool:
        """Return whether nothing up to an operation is still to happen."""
        return not self._late or self._late[0][0] > count

    def wait_event(self, event: Event) -> None:
        with lock:
            merge(self.clock, event.clock)

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(other.record_event())

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        count_sync("stream.synchronize")
        with lock:
            self.finish()
            merge(told, host_clock())

    def finish(self) -> None:
        """Wait on the host for all operations so far."""
        self.catch_up()
        self.run_until(self.count)
        merge(host_clock(), {**self.clock, self: self.count})

    def query(self) -> bool:
        return not self._late

    def __enter__(self) -> Self:
        local.__dict__.setdefault("streams", []).append(self)
        return self

    def __exit__(self, *_: object) -> None:
        local.streams.pop()


class Event:
    """A point in a stream."""

    def __init__(self, *_: Any, **__: Any):
        self.clock: Clock = {}

    def record(self, stream: Stream | None = None) -> None:
        if fails("event"):
            raise torch.AcceleratorError("CUDA error: out of memory")
        with lock:
            stream = stream or current_stream()
            touch_context(stream.device.index)
            merge(stream.clock, host_clock())
            self.clock = {**stream.clock, stream: stream.count}

    def synchronize(self) -> None:
        count_sync("event.synchronize")
        with lock:
            for stream, count in self.clock.items():
                stream.run_until(count)
            merge(host_clock(), self.clock)

    def wait(self, stream: Stream | None = None) -> None:
        (stream or current_stream()).wait_event(self)

    def query(self) -> bool:
        with lock:
            has_ended = all(stream.has_run(count) for stream, count in self.clock.items())
            if has_ended:
                merge(host_clock(), self.clock)
        return has_ended

    def elapsed_time(self, other: Event) -> float:
        del other
        return 1.0


default_streams: list[Stream] = []


def current_stream(device: Any = None) -> Stream:
    index = index_of(device)
    entered: list[Stream] = local.__dict__.get("streams", [])
    if entered and (device is None or entered[-1].device.index == index):
        return entered[-1]
    return default_streams[index]
