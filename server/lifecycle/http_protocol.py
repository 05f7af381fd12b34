"""uvicorn's HTTP protocol with more limits: size and time of request heads, open connections, pipelined requests."""

from __future__ import annotations

import asyncio
import json
import resource
import select
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MOST_CONNECTIONS = 1 << 16  # if the system has no limit
RETRY_AFTER_SECONDS = 1  # value of Retry-After for a refused connection


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of a client that has not completed a request."""

    max_head_bytes: int = 64 << 10  # request line and headers together, or bytes between chunks of a body
    max_headers: int = 100
    head_seconds: float = 20.0  # from the connection, or the first byte, to the end of the headers
    linger_seconds: float = 2.0  # time for a refused client to read the response
    max_connections: int = 512
    max_pipelined: int = 64  # requests of a connection that wait for the response to an earlier one
    hang_up_seconds: float = 0.5  # between two looks at whether a client with waiting requests has left

    @classmethod
    def of_process(cls) -> ConnectionLimits:
        """Return limits that let connections use half of the files that this process may open."""
        num_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return cls(max_connections=MOST_CONNECTIONS if num_files == resource.RLIM_INFINITY else num_files // 2)


class ConnectionGuard:
    """Creates the protocol of each connection, and closes idle connections when there are too many."""

    def __init__(self, limits: ConnectionLimits | None = None):
        self.limits = limits or ConnectionLimits.of_process()
        self.idle: dict[GuardedProtocol, None] = {}  # connections without a request, the longest idle first

    def __call__(self, **arguments: Any) -> GuardedProtocol:
        """Create the protocol of a connection; uvicorn calls this as if it were a class."""
        return GuardedProtocol(self, **arguments)


class RefusedError(Exception):
    """Ends the parsing of a request that the application will not answer."""

    def __init__(self, status: HTTPStatus, message: str):
        super().__init__(message)
        self.status = status


class PersistentParser:
    """httptools' parser, but requests to upgrade to another protocol are parsed as usual, which HTTP allows.

    By itself, httptools stops after the head of such a request, and parses its body as the next request. Here, a new
    parser continues with the body.
    """

    def __init__(self, protocol: GuardedProtocol):
        self._protocol = protocol
        self._parser = self._new_parser()
        self.is_repeating = False  # true while the new parser gets the framing headers of a parsed head

    def feed_data(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                self._parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                rest = rest[upgrade.args[0] :]
                self._parser, self.is_repeating = self._new_parser(), True
                self._parser.feed_data(b"POST / HTTP/1.1\r\n" + _framing(self._protocol.headers) + b"\r\n")
                self.is_repeating = False
            else:
                return

    def is_leaving(self) -> bool:
        """Return True if the next parser will parse the body of this request."""
        return bool(self._parser.should_upgrade())

    def should_upgrade(self) -> bool:
        return False

    def should_keep_alive(self) -> bool:
        return bool(self._parser.should_keep_alive())

    def get_method(self) -> bytes:
        method: bytes = self._parser.get_method()
        return method

    def get_http_version(self) -> str:
        version: str = self._parser.get_http_version()
        return version

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self._protocol)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as in uvicorn, for pipelined requests
        return parser


def _framing(headers: list[tuple[bytes, bytes]]) -> bytes:
    """Return the headers that give the length of a body."""
    framing = [each for each in headers if each[0] in {b"content-length", b"transfer-encoding"}]
    return b"".join(b"%s: %s\r\n" % each for each in framing)


class GuardedProtocol(HttpToolsProtocol):
    """The protocol of one connection.

    Bytes that complete no head and belong to no body are counted, so that no part of HTTP is unlimited: request lines,
    headers, trailers, chunk extensions.
    """

    def __init__(self, guard: ConnectionGuard, **arguments: Any):
        super().__init__(**arguments)
        self.parser: PersistentParser = PersistentParser(self)  # type: ignore[assignment]
        self._guard, self._limits = guard, guard.limits
        self._num_pending = 0  # bytes
        self._has_progressed = False
        self._refusal: RefusedError | None = None
        self._deadline: asyncio.TimerHandle | None = None  # for a head, or for the rest of a body that nobody reads
        self._running: RequestResponseCycle | None = None  # ``cycle`` is the newest, which may wait for this one
        self._hang_up_watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._guard.idle[self] = None
        self._set_deadline(self._limits.head_seconds)
        if len(self.connections) > self._limits.max_connections:
            longest = next(iter(self._guard.idle))
            if longest is self:
                self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "Too many connections are open: try again later.")
            else:
                del self._guard.idle[longest]
                longest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._guard.idle.pop(self, None)
        self._clear_deadline()
        if self._hang_up_watch is not None:
            self._hang_up_watch.cancel()
        self._disconnect_running()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None or self.transport.is_closing():
            return
        self._has_progressed = False
        super().data_received(data)
        if self._refusal is not None:
            return
        self._num_pending = 0 if self._has_progressed else self._num_pending + len(data)
        if self._num_pending > self._limits.max_head_bytes:
            self._refuse_head()
        elif self._deadline is None and self._is_idle:
            self._set_deadline(self._limits.head_seconds)

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def on_message_begin(self) -> None:
        if not self.parser.is_repeating:
            super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self.parser.is_repeating:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.cycle is not None and self.scope is self.cycle.scope:
            return  # a trailer, which would change the headers that the application has read
        super().on_header(name, value)
        if len(self.headers) > self._limits.max_headers:
            self._refuse_head()

    def on_headers_complete(self) -> None:
        if self.parser.is_repeating:
            return
        num_bytes = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if num_bytes > self._limits.max_head_bytes:
            self._refuse_head()
        elif not self.url.startswith(b"/"):
            self._refuse(HTTPStatus.BAD_REQUEST, "The target of the request must be a path of this server.")
        if self._refusal is not None:
            raise self._refusal  # prevents a call of the application
        self._has_progressed = True
        self._clear_deadline()
        self._guard.idle.pop(self, None)
        super().on_headers_complete()
        if len(self.pipeline) > self._limits.max_pipelined:
            self._refuse(
                HTTPStatus.TOO_MANY_REQUESTS, "Too many pipelined requests: wait for responses before sending more."
            )
            raise cast("RefusedError", self._refusal)  # prevents the parsing of all other requests
        if self.pipeline and self._hang_up_watch is None:
            self._watch_hang_up()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        self._has_progressed = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.is_leaving():
            return
        self._has_progressed = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_idle and not self.transport.is_closing():
            self._guard.idle[self] = None

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that can't be parsed, unless it was refused during parsing."""
        if self._refusal is None:
            self._refuse(HTTPStatus.BAD_REQUEST, msg)

    def _refuse_head(self) -> None:
        most, num_bytes = self._limits.max_headers, self._limits.max_head_bytes
        message = f"Too many headers: send at most {most}, of {num_bytes} bytes together."
        self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, message)

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Send an error, and close the connection once the client has had time to read it."""
        if self._refusal is not None:
            return
        self._refusal = RefusedError(status, message)
        self._unset_keepalive_if_required()
        self._guard.idle.pop(self, None)
        if not self._is_idle and not self._leave_request():
            self.transport.abort()
            return
        self.transport.write(_response(status, message))
        self.transport.write_eof()
        self._set_deadline(self._limits.linger_seconds)

    def _leave_request(self) -> bool:
        """End the running request. Return True if an error may still be sent: its body is incomplete and unanswered."""
        running = self._running
        is_unanswered = running is not None and not self.pipeline and not running.response_started and running.more_body
        self._disconnect_running()
        return is_unanswered

    def _disconnect_running(self) -> None:
        """Tell the running request that its client has left, and forget those that wait for it."""
        self.pipeline.clear()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True  # prevents writes to a closed connection, too
            self._running.message_event.set()

    def _watch_hang_up(self) -> None:
        """Close the connection when the client has left: nothing is read from it while requests wait."""
        self._hang_up_watch = None
        if not self.pipeline or self.transport.is_closing():
            return
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
        if poll.poll(0):
            self.transport.close()
        else:
            self._hang_up_watch = self.loop.call_later(self._limits.hang_up_seconds, self._watch_hang_up)

    def _set_deadline(self, seconds: float) -> None:
        self._clear_deadline()
        self._deadline = self.loop.call_later(seconds, self._on_deadline)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _on_deadline(self) -> None:
        self._deadline = None
        if not self._num_pending or self._refusal is not None:
            self.transport.abort()
        elif self._is_idle:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "The request came too slowly.")


def _response(status: HTTPStatus, message: str) -> bytes:
    server_fault = status >= HTTPStatus.INTERNAL_SERVER_ERROR
    kind = "server_error" if server_fault else "invalid_request_error"
    body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": None}}).encode()
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    head += f"Retry-After: {RETRY_AFTER_SECONDS}\r\n" if server_fault else ""
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
