"""The way of events from the engine's thread to an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from .errors import EngineError, GenerationFailedError
from .events import TokenEvent
from .prompts import GenerationRequest
from .timeline import Timeline

MAX_UNREAD = 1024  # events of a stream that nobody has taken


class EventQueue:
    """What happened in some streams, in the order of its coming, for one reader; all of it in the loop's thread.

    It is bounded: a reader that falls too far behind gets an error instead of what it has missed.
    """

    def __init__(self, num_streams: int = 1):
        self._events: list[tuple[int, TokenEvent]] = []
        self._max_events = MAX_UNREAD * num_streams
        self._error: EngineError | None = None
        self._has_come = asyncio.Event()

    def put(self, index: int, item: TokenEvent | EngineError) -> bool:
        """Add what happened in one of the streams; False if nobody will read it any more."""
        if self._error is not None:
            return False
        self._has_come.set()
        if isinstance(item, EngineError):
            self._error = item
            return True
        if len(self._events) == self._max_events:
            self._events.clear()
            self._error = GenerationFailedError(
                f"the request was cancelled: {self._max_events} tokens of the reply were waiting to be read"
            )
            return False
        self._events.append((index, item))
        return True

    async def take(self) -> list[tuple[int, TokenEvent]]:
        """All events that have come, at least one, each with the number of its stream.

        Raises:
            EngineError: one of the streams has failed; its earlier events were taken before.
        """
        await self._has_come.wait()
        events, self._events = self._events, []
        if self._error is None:
            self._has_come.clear()
        elif not events:
            raise self._error
        return events


@dataclass(eq=False)
class TokenStream:
    """The events of one request, for the event loop that submitted it.

    ``fail`` and what ``publish`` hands out come from the engine thread; all else is for the loop. Iteration ends after
    the event that carries a finish reason, or raises the error that ended the request. ``cancel`` may be called at any
    time, also when the stream is over.
    """

    request: GenerationRequest
    loop: asyncio.AbstractEventLoop
    timeline: Timeline
    is_cancelled: bool = False
    _queue: EventQueue = field(default_factory=EventQueue)
    _index: int = 0  # in a queue of several

    def fail(self, error: EngineError) -> None:
        publish([(self, error)])

    def cancel(self) -> None:
        self.is_cancelled = True

    async def __aiter__(self) -> AsyncIterator[TokenEvent]:
        while True:
            for _, event in await self._queue.take():
                yield event
                if event.finish_reason is not None:
                    return

    def receive(self, item: TokenEvent | EngineError) -> None:
        """Take what was published; in the loop's thread."""
        if not self._queue.put(self._index, item):
            self.cancel()

    def join(self, queue: EventQueue, index: int) -> None:
        """From now on put everything into a queue of several streams, where this one has a number."""
        self._queue, self._index = queue, index


def merge(streams: Sequence[TokenStream]) -> EventQueue:
    """One queue for the events of streams that were just submitted; iterate over none of them any more."""
    queue = EventQueue(len(streams))
    for index, stream in enumerate(streams):
        stream.join(queue, index)
    return queue


def publish(items: Sequence[tuple[TokenStream, TokenEvent | EngineError]]) -> None:
    """Hand out the events of a step, waking each event loop once; from any thread."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[TokenStream, TokenEvent | EngineError]]] = {}
    for stream, item in items:
        by_loop.setdefault(stream.loop, []).append((stream, item))
    for loop, mine in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_hand_out, mine)


def _hand_out(items: Sequence[tuple[TokenStream, TokenEvent | EngineError]]) -> None:
    for stream, item in items:
        stream.receive(item)
