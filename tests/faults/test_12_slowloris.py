"""Clients that send heads or bodies very slowly, or keep connections idle."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from server.api.core.service import body as body_module
from server.engine.text.codec import Codec
from server.lifecycle.http_protocol import ConnectionLimits
from tests.server.engine.fakes import Rig, continuation
from tests.server.live.conftest import FakeServer, serving_rig
from tests.server.live.requests import ask, complete, error_of, status_of

LIMITS = ConnectionLimits(head_seconds=0.3, linger_seconds=0.3, max_connections=20)
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def brisk(codec: Codec) -> Iterator[FakeServer]:
    """A server that waits at most 0.3 seconds for heads, and accepts 20 connections."""
    with serving_rig(Rig(num_blocks=2048), codec, connections=LIMITS) as server:
        yield server


def is_answered(server: FakeServer) -> bool:
    body = json.loads(ask(server.port, complete(b"next", max_tokens=3)).partition(b"\r\n\r\n")[2])
    return body["choices"][0]["text"] == continuation(b"next", 3)


def read_all(connection: socket.socket) -> bytes:
    answer = b""
    try:
        while more := connection.recv(1 << 16):
            answer += more
    except ConnectionError:
        pass
    return answer


def drip(connection: socket.socket, drops: bytes, is_over: threading.Event) -> None:
    """Send a byte at a time until the connection is closed."""
    try:
        while not is_over.wait(0.02):
            for drop in drops:
                connection.sendall(bytes([drop]))
                if is_over.wait(0.02):
                    return
    except OSError:
        return


def drip_and_read(server: FakeServer, head: bytes, drops: bytes) -> bytes:
    is_over = threading.Event()
    with server.connect() as connection:
        connection.sendall(head)
        dripping = threading.Thread(target=drip, args=(connection, drops, is_over))
        dripping.start()
        answer = read_all(connection)
        is_over.set()
        dripping.join()
    return answer


def test_a_slow_head_is_408(brisk: FakeServer) -> None:
    answer = drip_and_read(brisk, b"", b"GET /health HTTP/1.1\r\n" + b"X-Slow: " + b"a" * 10_000)
    assert (status_of(answer), error_of(answer)["message"]) == (408, "The request came too slowly.")
    assert is_answered(brisk)


def test_a_slow_second_head_on_a_connection_is_408(brisk: FakeServer) -> None:
    answer = drip_and_read(brisk, b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /" + b"a" * 10_000)
    assert status_of(answer) == 200
    assert b"HTTP/1.1 408 " in answer


def test_a_connection_that_says_nothing_is_closed(brisk: FakeServer) -> None:
    with brisk.connect() as connection:
        assert read_all(connection) == b""
    assert is_answered(brisk)


def test_a_slow_body_is_408(brisk: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "BODY_GRACE_SECONDS", 0.2)
    monkeypatch.setattr(body_module, "BODY_BYTES_PER_SECOND", 10_000)
    answer = drip_and_read(brisk, HEAD + b"Content-Length: 100000\r\n\r\n", b'{"prompt": "' + b"a" * 10_000)
    assert status_of(answer) == 408
    assert error_of(answer)["message"].startswith("The body arrived too slowly: ")
    assert is_answered(brisk)


def test_a_body_that_never_comes_is_408(brisk: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "BODY_GRACE_SECONDS", 0.1)
    answer = ask(brisk.port, HEAD + b"Content-Length: 10\r\n\r\n")
    assert (status_of(answer), "0 bytes" in error_of(answer)["message"]) == (408, True)


def test_an_unread_rest_of_a_body_has_a_time_limit(brisk: FakeServer) -> None:
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"
    assert status_of(drip_and_read(brisk, head, b"a")) == 200


def test_idle_connections_are_closed_for_new_ones(brisk: FakeServer) -> None:
    """The connection that was idle longest is closed first; health checks are always accepted."""
    with ExitStack() as stack:
        idle = [stack.enter_context(brisk.connect()) for _ in range(3 * LIMITS.max_connections)]
        assert (
            status_of(ask(brisk.port, b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")) == 200
        )
        assert read_all(idle[0]) == b""
    assert is_answered(brisk)


def test_more_requests_than_connections_get_retry_after(brisk: FakeServer) -> None:
    gate = threading.Event()
    brisk.rig.model.before_step = lambda: gate.wait(30)
    with ExitStack() as stack:
        busy = [stack.enter_context(brisk.connect()) for _ in range(LIMITS.max_connections)]
        for connection in busy:
            connection.sendall(complete(b"busy", max_tokens=2, stream=True))
        for connection in busy:  # a stream has begun once its headers are there
            assert connection.recv(12) == b"HTTP/1.1 200"
        answer = ask(brisk.port, b"")
        gate.set()
        for connection in busy:
            assert b"[DONE]" in read_all(connection)
    assert status_of(answer) == 503
    assert b"Retry-After: 1" in answer
    brisk.rig.model.before_step = lambda: None
    assert is_answered(brisk)
