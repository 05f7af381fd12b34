"""Limits of what is read of another server's answer: bytes, time, and no encodings.

``bound`` sets them for a client of httpx, or of httpx2, which the hub's library has taken since its version 2.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Self

from server.http_client.reach import Reach

RANGE = re.compile(rb"bytes=(\d+)-(\d+)")
IS_FILE = "greenroom.is_file"  # an extension of requests, which redirects keep
FIRST_REDIRECT = 300  # the least status of answers whose bodies are no content
MAX_NAMED = 40  # characters of an encoding, in an error
DROPPED = {b"content-encoding", b"set-cookie"}  # nothing is decoded; a jar of cookies grows, and may end all requests


@dataclass(frozen=True)
class AnswerLimits:
    """Limits of one answer. A body has at most the bytes that were asked for by ``Range``, or else ``body_bytes``.

    Attributes:
        head_bytes: of status and headers, with those of all informational answers (1xx) before.
        error_bytes: of the body of a redirect or an error; the rest is not read.
        seconds: until it must be complete, and beside them one for each ``bytes_per_second`` that have come.
        file_path: in the paths of files, which may be as long as their ``Content-Length``; None if there are none.
        file_bytes: of a file whose answer tells no length.
    """

    head_bytes: int = 256 << 10
    error_bytes: int = 4 << 10
    body_bytes: int = 8 << 20
    seconds: float = 30.0
    bytes_per_second: int = 4096
    file_path: bytes | None = None
    file_bytes: int = 256 << 20


def bound(client: Any, limits: AnswerLimits, reach: Reach | None = None) -> None:
    """Limit all answers to a client, and ask for none that is encoded.

    Answers that exceed a limit end in the client's own errors for a failed connection or a timeout. Those that are
    encoded nevertheless, and connections to addresses that are out of reach, end in its ``UnsupportedProtocol``, which
    nobody tries again.

    Args:
        client: an ``httpx.Client`` or an ``httpx2.Client`` without connections yet.
        reach: addresses that it may connect to without a proxy, which decides by itself. None for all.
    """
    for transport in (client._transport, *client._mounts.values()):  # noqa: SLF001
        if transport is not None:
            pool = transport._pool = _BoundedPool(transport._pool, limits, reach)  # noqa: SLF001
            pool.bound_connections(None if transport in client._mounts.values() else reach)  # noqa: SLF001


class _BoundedPool:
    """A connection pool of httpcore whose answers are limited."""

    def __init__(self, pool: Any, limits: AnswerLimits, reach: Reach | None):
        self._pool, self._limits, self._reach = pool, limits, reach
        self._core = import_module(type(pool).__module__.partition(".")[0])  # httpcore, or httpcore2

    def bound_connections(self, reach: Reach | None) -> None:
        """Limit the connections that will be made, and where they lead."""
        backend = self._pool._network_backend  # noqa: SLF001
        self._pool._network_backend = _BoundedBackend(backend, self._limits, reach, self._core)  # noqa: SLF001

    def handle_request(self, request: Any) -> Any:
        """Send a request, and return its answer, whose body is yet to be read."""
        if self._reach is not None:
            self._reach.home = self._reach.home or request.url.host.decode()
        headers = [(name, value) for name, value in request.headers if name.lower() != b"accept-encoding"]
        request.headers = [*headers, (b"Accept-Encoding", b"identity")]
        path = self._limits.file_path
        is_file = request.extensions.setdefault(IS_FILE, path is not None and path in request.url.target)
        answer = self._pool.handle_request(request)
        is_error = answer.status >= FIRST_REDIRECT
        encodings = _values(answer.headers, b"content-encoding") - {b"", b"identity"}
        if encodings and not is_error and request.method != b"HEAD":
            answer.close()
            named = b", ".join(sorted(encodings))[:MAX_NAMED].decode("latin-1")
            raise self._core.UnsupportedProtocol(f"the server encodes its answer as {named!r}, for which nobody asked")
        answer.headers = [each for each in answer.headers if each[0].lower() not in DROPPED]
        nbytes = 0 if encodings else self._max_bytes(request, answer, is_file=is_file)
        stream = answer.extensions.get("network_stream")
        if isinstance(stream, _BoundedStream):
            stream.expect_body(nbytes)
        answer.stream = _Body(answer.stream, nbytes, self._core, is_cut=is_error)
        return answer

    def close(self) -> None:
        self._pool.close()

    def __enter__(self) -> Self:
        self._pool.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.__exit__(*error)

    def _max_bytes(self, request: Any, answer: Any, *, is_file: bool) -> int:
        """Return the bytes that an answer's body may have."""
        if answer.status >= FIRST_REDIRECT:
            return self._limits.error_bytes
        asked = RANGE.fullmatch(b"".join(_values(request.headers, b"range")))
        if asked is not None:
            return int(asked[2]) + 1 - int(asked[1])
        if not is_file:
            return self._limits.body_bytes
        told = _values(answer.headers, b"content-length")  # h11 admits one number
        return int(told.pop()) if told else self._limits.file_bytes


class _Body:
    """A body with a limit.

    Args:
        is_cut: whether what is beyond the limit is not read; it is an error otherwise.
    """

    def __init__(self, stream: Any, max_bytes: int, core: Any, *, is_cut: bool):
        self._stream, self._max_bytes, self._core, self._is_cut = stream, max_bytes, core, is_cut

    def __iter__(self) -> Iterator[bytes]:
        left = self._max_bytes
        if self._is_cut and not left:
            return
        for chunk in self._stream:
            if len(chunk) > left and not self._is_cut:
                raise self._core.RemoteProtocolError(f"the server sends more than {self._max_bytes} bytes")
            yield chunk[:left]
            left -= len(chunk)
            if self._is_cut and left <= 0:
                return

    def close(self) -> None:
        self._stream.close()


class _BoundedBackend:
    """A backend of httpcore that makes connections with limits."""

    def __init__(self, backend: Any, limits: AnswerLimits, reach: Reach | None, core: Any):
        self._backend, self._limits, self._reach, self._core = backend, limits, reach, core

    def connect_tcp(self, host: str, *args: Any, **kwargs: Any) -> _BoundedStream:
        """Connect to a host, and refuse its address before anything is sent to it."""
        stream = self._backend.connect_tcp(host, *args, **kwargs)
        address = stream.get_extra_info("server_addr")[0]
        if self._reach is not None and not self._reach.admits(host, address):
            stream.close()
            raise self._core.UnsupportedProtocol(
                f"{host} has the private address {address}, to which a server with a public address may not lead"
            )
        return _BoundedStream(stream, self._limits, self._core)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


class _BoundedStream:
    """A connection. What comes after something was written belongs to one answer."""

    def __init__(self, stream: Any, limits: AnswerLimits, core: Any):
        self._stream, self._limits, self._core = stream, limits, core
        self._begin_answer()

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, timeout)
        self._begin_answer()

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read some bytes of the answer."""
        if self._num_bytes > self._max_bytes:
            raise self._core.RemoteProtocolError(f"the server sends more than {self._max_bytes} bytes of headers")
        limits = self._limits
        left = self._begun_at + limits.seconds + self._num_bytes / limits.bytes_per_second - time.monotonic()
        if left <= 0:
            raise self._core.ReadTimeout(f"its answer is not complete after {limits.seconds:g} s")
        data: bytes = self._stream.read(max_bytes, left if timeout is None else min(timeout, left))
        self._num_bytes += len(data)
        return data

    def expect_body(self, nbytes: int) -> None:
        """Admit a body of some bytes, and as many bytes of headers of its chunks."""
        self._max_bytes += 2 * nbytes

    def start_tls(self, *args: Any, **kwargs: Any) -> _BoundedStream:
        return _BoundedStream(self._stream.start_tls(*args, **kwargs), self._limits, self._core)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _begin_answer(self) -> None:
        self._begun_at, self._num_bytes, self._max_bytes = time.monotonic(), 0, self._limits.head_bytes


def _values(headers: list[tuple[bytes, bytes]], name: bytes) -> set[bytes]:
    """Return the values of a header, of which one line may have several."""
    lines = [value for each, value in headers if each.lower() == name]
    return {value.strip().lower() for line in lines for value in line.split(b",")}
