"""Limits of answers, for the clients of httpx and of httpx2, against servers that exceed them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import httpx
import httpx2
import pytest

from server.http_client.bounded_answers import AnswerLimits, bound
from tests.hostile_server import BOMB, Answer, Hostile, dripping, endless, hostile_server, whole

LIMITS = AnswerLimits(
    head_bytes=32 << 10,
    error_bytes=1000,
    body_bytes=100_000,
    file_path=b"/file/",
    file_bytes=200_000,
)
IN_BUFFERS = 2 << 20  # bytes that a server may have sent, but nobody read
RANGE = {"Range": "bytes=0-999"}
PLAIN = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture(params=[httpx, httpx2], ids=["httpx", "httpx2"])
def library(request: pytest.FixtureRequest) -> ModuleType:
    return request.param


@pytest.fixture
def client(library: ModuleType) -> Iterator[Any]:
    with library.Client(follow_redirects=True, timeout=None) as client:
        bound(client, LIMITS)
        yield client


def by_path(**answers: Answer) -> Answer:
    """Answer as the first part of the path says."""

    def answer(server: Hostile, head: bytes) -> Iterator[bytes]:
        return answers[head.split(b"/")[1].split(b" ")[0].decode()](server, head)

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        endless("206 Partial Content", "Content-Range: bytes 0-999/1000000"),
        endless("200 OK"),
        endless("206 Partial Content", "Content-Length: 99999999999"),
        endless("206 Partial Content", "Transfer-Encoding: chunked", part=b"1000\r\n" + bytes(4096) + b"\r\n"),
        endless("206 Partial Content", "Transfer-Encoding: chunked", part=b"1;" + b"a" * 8000 + b"\r\n0\r\n"),
        endless("200 OK", part=b"X: y\r\n"),
        endless("103 Early Hints", part=b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100),
    ],
    ids=["206", "200", "length", "chunks", "headers of chunks", "headers", "103"],
)
def test_an_endless_answer_is_given_up(library: ModuleType, client: Any, answer: Answer) -> None:
    with hostile_server(answer) as server:
        with pytest.raises(library.RemoteProtocolError):
            client.get(server.url, headers=RANGE)
        assert server.num_bytes < IN_BUFFERS


@pytest.mark.parametrize("status", ["302 Found", "400 Bad Request", "401 Unauthorized", "500 Oops"])
def test_of_an_endless_error_the_beginning_is_read(client: Any, status: str) -> None:
    with hostile_server(endless(status, part=b"sorry " * 1000)) as server:
        found = client.get(server.url, headers=RANGE)
        assert (found.status_code, len(found.content)) == (int(status[:3]), LIMITS.error_bytes)
        assert server.num_bytes < IN_BUFFERS


@pytest.mark.parametrize(
    ("begin", "drop"),
    [
        (b"", b"H"),
        (PLAIN, b"X: y\r\n"),
        (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN, b"X"),
        (PLAIN + b"Content-Length: 100000\r\n\r\n", b"a"),
        (PLAIN + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
        (PLAIN + b"Transfer-Encoding: chunked\r\n\r\n1;", b"a"),
        (b"HTTP/1.1 500 Oops\r\n\r\n", b"a"),
    ],
    ids=["status", "headers", "103", "100", "body", "chunks", "header of a chunk", "error"],
)
def test_a_dripping_answer_times_out(library: ModuleType, begin: bytes, drop: bytes) -> None:
    with hostile_server(dripping(begin, drop, 0.01)) as server, library.Client(timeout=None) as client:
        bound(client, replace(LIMITS, seconds=0.1, bytes_per_second=1 << 20))
        with pytest.raises(library.ReadTimeout):
            client.get(server.url)


def test_the_time_grows_with_what_has_come(library: ModuleType) -> None:
    body = bytes(50_000)

    def answer(server: Hostile, _: bytes) -> Iterator[bytes]:
        yield PLAIN + f"Content-Length: {len(body)}\r\n\r\n".encode() + body[:-1]
        server.pause(0.11)
        yield body[-1:]

    with hostile_server(answer) as server, library.Client() as client:
        bound(client, replace(LIMITS, seconds=0.1, bytes_per_second=10_000))
        assert len(client.get(server.url).content) == len(body)


def test_each_answer_of_a_connection_has_its_own_limits(client: Any) -> None:
    with hostile_server(whole("200 OK", bytes(90_000))) as server:
        for _ in range(3):
            assert len(client.get(server.url).content) == 90_000


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate, gzip", "br", "identity\r\nContent-Encoding: gzip"])
def test_an_encoded_answer_is_refused(library: ModuleType, client: Any, encoding: str) -> None:
    with hostile_server(whole("200 OK", BOMB, f"Content-Encoding: {encoding}")) as server:
        with pytest.raises(library.UnsupportedProtocol, match="for which nobody asked"):
            client.get(server.url)
        assert b"accept-encoding: identity\r\n" in server.heads[0].lower()
        assert server.heads[0].lower().count(b"accept-encoding") == 1


@pytest.mark.parametrize("status", ["302 Found", "404 Not Found"])
def test_an_encoded_error_is_one_without_a_body(client: Any, status: str) -> None:
    with hostile_server(whole(status, BOMB, "Content-Encoding: gzip")) as server:
        found = client.get(server.url)
    assert (found.status_code, found.content) == (int(status[:3]), b"")


def test_a_file_may_be_as_long_as_it_says(library: ModuleType, client: Any) -> None:
    with hostile_server(by_path(file=whole("200 OK", bytes(300_000)), api=whole("200 OK", bytes(300_000)))) as server:
        assert len(client.get(f"{server.url}/file/x").content) == 300_000
        with pytest.raises(library.RemoteProtocolError, match="more than 100000 bytes"):
            client.get(f"{server.url}/api/x")


def test_a_file_that_tells_no_length_has_a_limit(library: ModuleType, client: Any) -> None:
    too_long = pytest.raises(library.RemoteProtocolError, match="more than 200000 bytes")
    with hostile_server(endless("200 OK")) as server, too_long:
        client.get(f"{server.url}/file/x")


@pytest.mark.parametrize("headers", [(), ("Content-Encoding: gzip",)], ids=["plain", "encoded"])
def test_a_redirect_makes_no_answer_a_file(library: ModuleType, client: Any, headers: tuple[str, ...]) -> None:
    redirect = whole("302 Found", b"", "Location: /file/x", *headers)
    answer = by_path(api=redirect, file=whole("200 OK", bytes(300_000)))
    too_long = pytest.raises(library.RemoteProtocolError, match="more than 100000 bytes")
    with hostile_server(answer) as server, too_long:
        client.get(f"{server.url}/api/x")


@pytest.mark.parametrize("told", ["1" * 5000, "²", "-1"])
def test_a_length_that_is_none_is_an_error(library: ModuleType, client: Any, told: str) -> None:
    def answer(*_: object) -> Iterator[bytes]:
        yield f"HTTP/1.1 200 OK\r\nContent-Length: {told}\r\n\r\n".encode("latin-1")

    with hostile_server(answer) as server, pytest.raises(library.RemoteProtocolError):
        client.get(f"{server.url}/file/x")


def test_a_proxy_has_the_same_limits(library: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    with hostile_server(endless("200 OK")) as server:
        monkeypatch.setenv("HTTP_PROXY", server.url)
        monkeypatch.setenv("NO_PROXY", "")
        with library.Client() as client:
            bound(client, LIMITS)
            with pytest.raises(library.RemoteProtocolError, match="more than 100000 bytes"):
                client.get("http://models.example/x")
