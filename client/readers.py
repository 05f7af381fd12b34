"""What the events of a stream mean; free of I/O."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar

from client.errors import Complaint, InvalidReplyError, StreamFailedError, StreamInterruptedError
from client.frames import ExpertFrame, snapshot_of, updated
from client.generation import Reply, Token, choices_of, tokens_of, usage_of
from client.parsing import expecting
from client.sse import EventDecoder, ServerSentEvent

DONE = "[DONE]"

T_co = TypeVar("T_co", covariant=True)
R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R", bound=Reply)


class EventReader(Protocol[T_co, R_co]):
    """Turns events into items, and keeps what they are together."""

    is_over: bool

    def read(self, event: ServerSentEvent) -> Iterator[T_co]:
        """The items of an event."""

    @property
    def result(self) -> R_co:
        """Everything that has come so far."""


class TokenReader(Generic[R]):
    """The chunks of a completion or a chat."""

    def __init__(self, kind: type[R]):
        self.is_over = False
        self._kind = kind
        self._tokens: list[Token] = []
        self._last: dict[str, Any] = {}
        self._usage: dict[str, Any] = {}

    def read(self, event: ServerSentEvent) -> Iterator[Token]:
        if event.data == DONE:
            self.is_over = True
            return
        with expecting("chunk"):
            body = body_of(event)
            tokens = tokens_of(body)
            self._last = body
            self._usage = body if body.get("usage") else self._usage
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
            choices_of(self._tokens),
            usage_of(self._usage),
        )


class FrameReader:
    """The snapshot and the updates of a server's experts; they have no end."""

    def __init__(self) -> None:
        self.is_over = False
        self._frame: ExpertFrame | None = None

    def read(self, event: ServerSentEvent) -> Iterator[ExpertFrame]:
        with expecting("stream of experts"):
            if event.event == "snapshot":
                self._frame = snapshot_of(body_of(event))
            elif event.event == "update" and self._frame is not None:
                self._frame = updated(self._frame, body_of(event))
            else:
                body_of(event)
                return
        yield self._frame

    @property
    def result(self) -> ExpertFrame | None:
        return self._frame


def body_of(event: ServerSentEvent) -> Any:
    """The JSON of an event.

    Raises:
        StreamFailedError: it says that the reply failed.
    """
    try:
        body = json.loads(event.data)
    except ValueError as error:
        raise InvalidReplyError(f"an event of the stream is no JSON: {error}") from error
    complaint = Complaint.of(body)
    if complaint is not None:
        raise StreamFailedError(complaint)
    return body


class StreamBody(Generic[T_co, R_co]):
    """From the bytes of a stream to its items."""

    def __init__(self, reader: EventReader[T_co, R_co]):
        self._reader, self._decoder = reader, EventDecoder()

    @property
    def is_over(self) -> bool:
        return self._reader.is_over

    @property
    def result(self) -> R_co:
        return self._reader.result

    def feed(self, data: bytes) -> Iterator[T_co]:
        """The items that are complete now; what comes behind the end is not read."""
        for event in self._decoder.feed(data):
            yield from self._reader.read(event)
            if self._reader.is_over:
                return

    def end(self) -> None:
        """The connection has ended.

        Raises:
            StreamInterruptedError: the stream had not.
        """
        if not self._reader.is_over:
            raise StreamInterruptedError("the connection ended before the stream did")
