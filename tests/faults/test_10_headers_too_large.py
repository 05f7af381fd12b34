"""A header of 1 MB, 10,000 headers, an endless request line; the same as trailers of a body."""

from __future__ import annotations

import json

import pytest

from tests.server.engine.fakes import continuation
from tests.server.live.conftest import FakeServer
from tests.server.live.requests import ask, complete, error_of, status_of

GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
BODY = b'{"prompt": [97], "max_tokens": 2, "temperature": 0}'


def still_answers(live: FakeServer) -> bool:
    body = json.loads(ask(live.port, complete(b"next", max_tokens=3)).partition(b"\r\n\r\n")[2])
    return body["choices"][0]["text"] == continuation(b"next", 3)


@pytest.mark.parametrize(
    "request_",
    [
        GET + b"X-Large: " + b"a" * (1 << 20) + b"\r\n\r\n",
        GET + b"X-Large: " + b"a" * (70 << 10) + b"\r\n\r\n",
        GET + b"".join(b"X-%d: a\r\n" % number for number in range(10_000)) + b"\r\n",
        GET + b"X: a\r\n" * 101 + b"\r\n",
        GET + (b"X-%s: a\r\n" % (b"n" * 1000)) * 90 + b"\r\n",
        GET + b"a" * (1 << 20) + b": 1\r\n\r\n",
        b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        GET + b"X-Large: " + b"a" * (1 << 20),  # and never an end
    ],
    ids=["1 MB", "70 kB", "10,000", "101", "long names", "1 MB name", "1 MB target", "no end"],
)
def test_heads_that_are_too_large_are_431(shared_live: FakeServer, request_: bytes) -> None:
    answer = ask(shared_live.port, request_)
    assert status_of(answer) == 431
    assert error_of(answer)["message"] == "Too many headers: send at most 100, of 65536 bytes together."
    assert still_answers(shared_live)


def test_a_head_within_the_limits_is_taken(shared_live: FakeServer) -> None:
    assert status_of(ask(shared_live.port, GET + b"X-Large: " + b"a" * (60 << 10) + b"\r\n\r\n")) == 200
    assert status_of(ask(shared_live.port, GET + b"X: a\r\n" * 90 + b"\r\n")) == 200


def test_a_head_within_a_second_request_is_counted_anew(shared_live: FakeServer) -> None:
    large = b"X-Large: " + b"a" * (40 << 10) + b"\r\n\r\n"
    first = GET.replace(b"Connection: close\r\n", b"") + large
    answer = ask(shared_live.port, first + first + GET + large)
    assert answer.count(b"HTTP/1.1 200 OK") == 3


@pytest.mark.parametrize(
    "rest",
    [
        b"1;" + b"e" * (1 << 20),
        b"1;%s\r\n{\r\n" % (b"e" * (1 << 20)),
        b"1\r\n{\r\n0\r\nX-Trailer: " + b"a" * (1 << 20),
    ],
    ids=["extension without end", "extension", "trailer without end"],
)
def test_chunk_extensions_and_trailers_are_limited(shared_live: FakeServer, rest: bytes) -> None:
    """The request has begun, so the connection may end without an answer."""
    with shared_live.connect() as connection:
        connection.sendall(CHUNKED)
        try:
            connection.sendall(rest)
            answer = connection.recv(1 << 16)
        except ConnectionError:
            answer = b""
    assert answer == b"" or status_of(answer) in {400, 431}
    assert still_answers(shared_live)


def test_trailers_change_nothing(shared_live: FakeServer) -> None:
    chunk = b"%x\r\n%s\r\n0\r\n" % (len(BODY), BODY)
    answer = ask(shared_live.port, CHUNKED + chunk + b"X-Request-Id: trailing\r\nHost: evil\r\n\r\n")
    assert status_of(answer) == 200
    assert b"trailing" not in answer


@pytest.mark.parametrize(
    "target", [b"http://evil.example/health", b"*", b"evil.example:80", b"health", b"\x00", b"/\xff\r", b""]
)
def test_a_target_that_is_no_path_is_400(shared_live: FakeServer, target: bytes) -> None:
    answer = ask(shared_live.port, GET.replace(b"/health", target) + b"\r\n")
    assert status_of(answer) == 400
    assert still_answers(shared_live)


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\r\n\r\nhello\r\n"]
)
def test_another_protocol_is_answered_with_400(shared_live: FakeServer, data: bytes) -> None:
    answer = ask(shared_live.port, data + b"\r\n\r\n")
    assert (status_of(answer), error_of(answer)["type"]) == (400, "invalid_request_error")
