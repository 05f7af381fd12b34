"""Protocols of what takes the engine's events: one sink for each request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from server.engine.interface.errors import EngineError
from server.engine.interface.events import TokenEvent
from server.engine.interface.timeline import Timeline


class EventSink(Protocol):
    """Takes the events of one request. Events, errors and times are plain data, which may go to another process.

    The last item is an event with a finish reason, or an error. Any thread of the engine may use a sink.
    """

    @property
    def timeline(self) -> Timeline:
        """Times of the request. The engine writes them before it sends the event that they belong to."""

    @property
    def outlet(self) -> EventOutlet:
        """Takes the items of this sink and of others with an equal outlet together."""

    @property
    def is_cancelled(self) -> bool:
        """True if nobody wants further items; the engine ends the request after its step."""

    def cancel(self) -> None:
        """Take no further items."""


SinkItem = tuple[EventSink, TokenEvent | EngineError]


class EventOutlet(Protocol):
    """The way of the items of a step to the readers behind their sinks; hashable."""

    def send(self, items: Sequence[SinkItem]) -> None:
        """Send items at once, without waiting for a reader; from any thread."""


def publish(items: Sequence[SinkItem]) -> None:
    """Send the items of a step, those of an outlet together; from any thread."""
    if len(items) == 1:
        items[0][0].outlet.send(items)
        return
    by_outlet: dict[EventOutlet, list[SinkItem]] = {}
    for sink, item in items:
        by_outlet.setdefault(sink.outlet, []).append((sink, item))
    for outlet, mine in by_outlet.items():
        outlet.send(mine)
