"""Streams that carry events from the engine's thread to an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import cast

from server.engine.interface.errors import EngineError, GenerationFailedError
from server.engine.interface.event_sinks import SinkItem
from server.engine.interface.events import TokenEvent
from server.engine.interface.prompts import GenerationRequest
from server.engine.interface.request_memory import RequestMemoryError, Reservation
from server.engine.interface.timeline import Timeline

MAX_UNREAD = 1024  # events of a stream
FREE_UNREAD = 32  # events of a stream that a request reserves memory for before it runs


class EventQueue:
    """Events of one or more streams in the order of arrival, for one reader. Use it in the loop's thread only.

    The queue is bounded: a reader that falls too far behind gets an error instead of the events it missed.

    Args:
        reservation: counts the bytes of events that wait beyond ``free_bytes``.
        free_bytes: bytes that are reserved already.
    """

    def __init__(self, num_streams: int = 1, reservation: Reservation | None = None, free_bytes: int = 0):
        self._events: list[tuple[int, TokenEvent]] = []
        self._max_events = MAX_UNREAD * num_streams
        self._reservation, self._free_bytes = reservation, free_bytes
        self._unread_bytes = self._counted_bytes = 0
        self._error: EngineError | None = None
        self._is_woken = False
        self._reader: asyncio.Future[None] | None = None  # done when the waiting reader has something to take
        self._end: asyncio.Future[None] | None = None  # done when a reader that lets events gather should take them

    def put(self, index: int, item: TokenEvent | EngineError) -> bool:
        """Add an event or error of a stream; return False if nobody will read it."""
        if self._error is not None:
            return False
        self.wake()
        if isinstance(item, EngineError) or item.finish_reason is not None:
            _complete(self._end)
        if isinstance(item, EngineError):
            self._error = item
            return True
        num_events = len(self._events)
        if num_events == self._max_events:
            return self._fail(
                GenerationFailedError(
                    f"the request was cancelled because {num_events} tokens of the reply were waiting to be read"
                )
            )
        refusal = self._hold(item)
        if refusal and num_events:  # a reader that keeps up always gets the next event
            return self._fail(
                RequestMemoryError(f"{num_events} tokens of the reply were waiting to be read: {refusal}")
            )
        self._events.append((index, item))
        return True

    def wake(self) -> None:
        """Make ``take`` return at once, with no events if none have arrived."""
        self._is_woken = True
        _complete(self._reader)

    async def gather(self, seconds: float) -> None:
        """Let events come together for some seconds, at most until the next stream ends."""
        if self._error is not None or any(event.finish_reason is not None for _, event in self._events):
            return
        loop = asyncio.get_running_loop()
        self._end = loop.create_future()
        timer = loop.call_later(seconds, _complete, self._end)
        try:
            await self._end
        finally:
            timer.cancel()

    async def take(self) -> list[tuple[int, TokenEvent]]:
        """Wait for events and return all of them, each with the index of its stream.

        Raises:
            EngineError: a stream has failed, and all earlier events were taken.
        """
        if not self._is_woken:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        events = self._drop()
        if self._error is None:
            self._is_woken = False
        elif not events:
            raise self._error
        return events

    def _fail(self, error: EngineError) -> bool:
        """Drop the events that nobody has read, and let the reader get an error instead."""
        self._drop()
        self._error = error
        return False

    def _hold(self, event: TokenEvent) -> RequestMemoryError | None:
        """Count the bytes of an event; return the error if there is no memory for it."""
        if self._reservation is None:
            return None
        self._unread_bytes += event.nbytes
        missing = self._unread_bytes - self._free_bytes - self._counted_bytes
        if missing > 0:
            if not self._reservation.use_now(missing):
                return self._reservation.memory.refusal(missing)
            self._counted_bytes += missing
        return None

    def _drop(self) -> list[tuple[int, TokenEvent]]:
        """Take all events, and release what was counted for them."""
        events, self._events = self._events, []
        if self._reservation is not None and self._counted_bytes:
            self._reservation.give_back(self._counted_bytes)
        self._unread_bytes = self._counted_bytes = 0
        return events


def _complete(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


@dataclass(frozen=True)
class LoopOutlet:
    """An ``EventOutlet`` to the streams of an event loop, which it wakes once for all items of a step."""

    loop: asyncio.AbstractEventLoop

    def send(self, items: Sequence[SinkItem]) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(_deliver, items)


def _deliver(items: Sequence[SinkItem]) -> None:
    for stream, item in items:
        cast("TokenStream", stream).receive(item)


@dataclass(eq=False)
class TokenStream:
    """The events of one request, for the event loop that submitted it: the ``EventSink`` of this process.

    The engine's threads use it as a sink; everything else is for the event loop. Iteration ends after the
    event with a finish reason, or raises the error that ended the request. ``cancel`` may be called at any time, even
    after the end.
    """

    request: GenerationRequest
    loop: asyncio.AbstractEventLoop
    timeline: Timeline
    is_cancelled: bool = False
    outlet: LoopOutlet = field(init=False)
    _queue: EventQueue = field(default_factory=EventQueue)
    _index: int = 0  # in a queue of several streams

    def __post_init__(self) -> None:
        self.outlet = LoopOutlet(self.loop)

    def cancel(self) -> None:
        self.is_cancelled = True

    @property
    def is_accepted(self) -> bool:
        """True if the engine has taken the request; that of this process has when it returns the stream."""
        return True

    async def accepted(self) -> None:
        """Wait until the engine has taken the request.

        Raises:
            EngineError: it does not take it, or not now.
        """

    async def __aiter__(self) -> AsyncIterator[TokenEvent]:
        while True:
            for _, event in await self._queue.take():
                yield event
                if event.finish_reason is not None:
                    return

    def receive(self, item: TokenEvent | EngineError) -> None:
        """Queue a published event; in the loop's thread."""
        if not self._queue.put(self._index, item):
            self.cancel()

    def join(self, queue: EventQueue, index: int) -> None:
        """Put all further events into a queue of several streams, under an index."""
        self._queue, self._index = queue, index


def merge(streams: Sequence[TokenStream], reservation: Reservation | None = None, free_bytes: int = 0) -> EventQueue:
    """Return one queue for the events of just submitted streams. Do not iterate over the streams afterwards.

    Args:
        reservation: counts the bytes of events that wait beyond ``free_bytes``.
        free_bytes: bytes that are reserved already.
    """
    queue = EventQueue(len(streams), reservation, free_bytes)
    for index, stream in enumerate(streams):
        stream.join(queue, index)
    return queue
