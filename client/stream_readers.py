"""Parsing of the events of a stream, without any I/O."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar

from client.errors import ErrorBody, InvalidReplyError, StreamFailedError, StreamInterruptedError
from client.frames import ExpertFrame, apply_update, parse_snapshot
from client.generation import Reply, Routing, Token, join_tokens, parse_routing, parse_tokens, parse_usage
from client.parsing import reply_errors
from client.sse import EventDecoder, ServerSentEvent

DONE = "[DONE]"

T_co = TypeVar("T_co", covariant=True)
R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R", bound=Reply)


class EventReader(Protocol[T_co, R_co]):
    """Converts events to items, and collects them into a result."""

    is_finished: bool

    def read(self, event: ServerSentEvent) -> Iterator[T_co]:
        """Yield the items of an event."""

    @property
    def result(self) -> R_co:
        """The result so far."""


class TokenReader(Generic[R]):
    """Reads the chunks of a completion or a chat."""

    def __init__(self, kind: type[R]):
        self.is_finished = False
        self._kind = kind
        self._tokens: list[Token] = []
        self._last: dict[str, Any] = {}
        self._usage: dict[str, Any] = {}
        self._routing: Routing | None = None

    def read(self, event: ServerSentEvent) -> Iterator[Token]:
        if event.data == DONE:
            self.is_finished = True
            return
        with reply_errors("chunk"):
            body = parse_event(event)
            tokens = parse_tokens(body)
            self._last = body
            self._usage = body if body.get("usage") else self._usage
            self._routing = parse_routing(body) or self._routing
        for token in tokens:
            self._tokens.append(token)
            yield token

    @property
    def result(self) -> R:
        last = self._last
        return self._kind(
            last.get("id", ""),
            last.get("model", ""),
            last.get("created", 0),
            join_tokens(self._tokens),
            parse_usage(self._usage),
            self._routing,
        )


class FrameReader:
    """Reads the snapshot and the updates of a server's experts; the stream has no end."""

    def __init__(self) -> None:
        self.is_finished = False
        self._frame: ExpertFrame | None = None

    def read(self, event: ServerSentEvent) -> Iterator[ExpertFrame]:
        with reply_errors("expert stream"):
            if event.event == "snapshot":
                self._frame = parse_snapshot(parse_event(event))
            elif event.event == "update" and self._frame is not None:
                self._frame = apply_update(self._frame, parse_event(event))
            else:
                parse_event(event)
                return
        yield self._frame

    @property
    def result(self) -> ExpertFrame | None:
        return self._frame


def parse_event(event: ServerSentEvent) -> Any:
    """Parse the JSON of an event.

    Raises:
        StreamFailedError: If the event reports that generation failed.
    """
    try:
        data = json.loads(event.data)
    except ValueError as error:
        raise InvalidReplyError(f"an event of the stream is not valid JSON: {error}") from error
    error_body = ErrorBody.parse(data)
    if error_body is not None:
        raise StreamFailedError(error_body)
    return data


class StreamDecoder(Generic[T_co, R_co]):
    """Decodes the bytes of a stream into items."""

    def __init__(self, reader: EventReader[T_co, R_co]):
        self._reader, self._decoder = reader, EventDecoder()

    @property
    def is_finished(self) -> bool:
        return self._reader.is_finished

    @property
    def result(self) -> R_co:
        return self._reader.result

    def feed(self, data: bytes) -> Iterator[T_co]:
        """Yield the items that are complete; data after the end of the stream is ignored."""
        for event in self._decoder.feed(data):
            yield from self._reader.read(event)
            if self._reader.is_finished:
                return

    def end(self) -> None:
        """Handle the end of the connection.

        Raises:
            StreamInterruptedError: If the stream is not finished.
        """
        if not self._reader.is_finished:
            raise StreamInterruptedError("the connection ended before the stream did")
