"""Incremental decoder of server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from client.errors import InvalidReplyError

MAX_EVENT_BYTES = 64 << 20  # limit for the data of one event, and for one line
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class ServerSentEvent:
    """One event; ``event`` defaults to "message"."""

    data: str
    event: str = "message"


class EventDecoder:
    """Decodes bytes split at any position. An empty line completes an event; incomplete events are dropped."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES):
        self._max_event_bytes = max_event_bytes
        self._lines = _LineSplitter(max_event_bytes)
        self._event = ""
        self._data: list[str] = []
        self._data_bytes = 0

    def feed(self, data: bytes) -> Iterator[ServerSentEvent]:
        """Yield the events that are complete after ``data``.

        Raises:
            InvalidReplyError: If a line or an event exceeds the size limit.
        """
        for line in self._lines.feed(data):
            if line:
                self._take(line)
            elif self._data:
                yield ServerSentEvent("\n".join(self._data), self._event or "message")
                self._reset()
            else:
                self._reset()

    def _take(self, line: bytes) -> None:
        """Process one line of an event. A comment begins with a colon, so its field name is empty."""
        name, _, value = line.partition(b":")
        text = value.removeprefix(b" ").decode("utf-8", errors="replace")
        if name == b"data":
            self._data_bytes += len(line)
            if self._data_bytes > self._max_event_bytes:
                raise InvalidReplyError(f"an event of the stream exceeds the limit of {self._max_event_bytes} bytes")
            self._data.append(text)
        elif name == b"event":
            self._event = text

    def _reset(self) -> None:
        self._event, self._data, self._data_bytes = "", [], 0


class _LineSplitter:
    """Splits bytes into lines that end with CR, LF or CRLF. A CRLF may be split between two chunks."""

    def __init__(self, max_line_bytes: int):
        self._max_line_bytes = max_line_bytes
        self._pieces: list[bytes] = []  # parts of the incomplete line
        self._pieces_bytes = 0
        self._after_cr = False
        self._is_first = True

    def feed(self, data: bytes) -> Iterator[bytes]:
        if self._after_cr and data:
            data = data.removeprefix(b"\n")
            self._after_cr = False
        if not data:
            return
        *complete, rest = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._after_cr = data.endswith(b"\r")
        for piece in complete:
            yield self._line_with(piece)
        if rest:
            self._keep(rest)

    def _line_with(self, piece: bytes) -> bytes:
        self._keep(piece)
        line = b"".join(self._pieces)
        self._pieces, self._pieces_bytes = [], 0
        if self._is_first:
            self._is_first = False
            line = line.removeprefix(BOM)
        return line

    def _keep(self, piece: bytes) -> None:
        self._pieces_bytes += len(piece)
        if self._pieces_bytes > self._max_line_bytes:
            raise InvalidReplyError(f"a line of the stream exceeds the limit of {self._max_line_bytes} bytes")
        self._pieces.append(piece)
