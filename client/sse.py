"""Server-sent events out of bytes, as they come (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from client.errors import InvalidReplyError

MAX_EVENT_BYTES = 64 << 20  # of the data of one event, and of one line
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class ServerSentEvent:
    """One event; ``event`` is "message" where the server names none."""

    data: str
    event: str = "message"


class EventDecoder:
    """Takes bytes cut anywhere; what stands behind the last empty line is no event yet, and at the end never is."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES):
        self._max_event_bytes = max_event_bytes
        self._lines = _LineSplitter(max_event_bytes)
        self._event = ""
        self._data: list[str] = []
        self._data_bytes = 0

    def feed(self, data: bytes) -> Iterator[ServerSentEvent]:
        """The events that end within ``data``.

        Raises:
            InvalidReplyError: a line or an event is longer than it may be.
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
        """Take one line of an event; a comment begins with a colon, and so has no name."""
        name, _, value = line.partition(b":")
        text = value.removeprefix(b" ").decode("utf-8", errors="replace")
        if name == b"data":
            self._data_bytes += len(line)
            if self._data_bytes > self._max_event_bytes:
                raise InvalidReplyError(f"an event of the stream is longer than {self._max_event_bytes} bytes")
            self._data.append(text)
        elif name == b"event":
            self._event = text

    def _reset(self) -> None:
        self._event, self._data, self._data_bytes = "", [], 0


class _LineSplitter:
    """Lines end with CR, LF or both; a CR at the end of a piece may be half of such a pair."""

    def __init__(self, max_line_bytes: int):
        self._max_line_bytes = max_line_bytes
        self._pieces: list[bytes] = []  # of a line without an end
        self._pieces_bytes = 0
        self._after_cr = False
        self._is_first = True

    def feed(self, data: bytes) -> Iterator[bytes]:
        if self._after_cr and data:
            data = data.removeprefix(b"\n")
            self._after_cr = False
        if not data:
            return
        *whole, rest = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._after_cr = data.endswith(b"\r")
        for piece in whole:
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
            raise InvalidReplyError(f"a line of the stream is longer than {self._max_line_bytes} bytes")
        self._pieces.append(piece)
