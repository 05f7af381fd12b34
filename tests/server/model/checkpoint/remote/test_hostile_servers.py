"""Web servers and hubs that answer with nonsense, or without an end: a read ends in an error that says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

import numpy as np
import pytest

from expert_store.errors import SourceError, SourceTimeoutError
from expert_store.sources.base import Piece
from server.http_client import reach
from server.model.checkpoint.remote import retries, web_client
from server.model.checkpoint.remote.web_client import AnswerLimits, Content, WebClient
from server.model.checkpoint.remote.web_source import OpenWebSource, WebSource
from tests.hostile_server import BOMB, Answer, Hostile, dripping, endless, hostile_server, whole

FILE = "Content-Range: bytes 0-0/1000", 'ETag: "1"'


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebClient]:
    monkeypatch.setattr(retries, "FIRST_WAIT_SECONDS", 0.0)
    monkeypatch.setattr(retries, "MAX_WAIT_SECONDS", 0.0)
    found = WebClient(limits=AnswerLimits(head_bytes=32 << 10, seconds=1.0, bytes_per_second=1 << 20))
    yield found
    found.close()


def failure(client: WebClient, url: str) -> str:
    with pytest.raises(SourceError) as raised:
        WebSource(f"{url}/weights", client).open()
    return str(raised.value)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (whole("302 Found", b"", "Location: /weights"), "Exceeded maximum allowed redirects"),
        (whole("302 Found", b"", "Location: http://[::1"), "Invalid URL in location header"),
        (whole("302 Found", b"", "Location: file:///etc/passwd"), "unsupported protocol"),
        (whole("302 Found", b"", "Location: http://xn--/"), "Malformed A-label"),
        (whole("302 Found", b"", "Location: http://../"), "the connection failed"),
        (whole("302 Found", b"", "Location: ²"), "the server answers 302|Exceeded maximum"),
        (whole("206 Partial Content", b"not gzip", *FILE, "Content-Encoding: gzip"), "for which nobody asked"),
        (whole("206 Partial Content", BOMB, *FILE, "Content-Encoding: gzip"), "for which nobody asked"),
        (whole("400 Bad Request", BOMB, "Content-Encoding: gzip"), "the server answers 400: Bad Request"),
        (whole("206 Partial Content", b"a", f"Content-Range: bytes 0-0/{'9' * 5000}"), "does not tell how long"),
        (whole("206 Partial Content", b"a", "Content-Range: bytes 0-0/²"), "does not tell how long"),
        (whole("206 Partial Content", b"a", "Content-Range: bytes 0-0/-1"), "does not tell how long"),
        (whole("206 Partial Content", b"a", "Content-Range: bytes 0-0/*"), "does not tell how long"),
        (whole("503 Busy", b"", "Retry-After: ²"), "the server answers 503"),
        (whole("429 Busy", b"", 'RateLimit: "a";t=²'), "the server answers 429"),
        (
            whole("101 Switching Protocols", b"", "Upgrade: x", "Connection: upgrade"),
            "the connection failed|answers 101",
        ),
        (whole("999 What", b""), "the server answers 999"),
        (whole("abc", b""), "the connection failed"),
    ],
)
def test_nonsense_is_an_error_with_a_reason(client: WebClient, answer: Answer, reason: str) -> None:
    with hostile_server(answer) as server:
        message = failure(client, server.url)
    assert message.startswith(f"cannot read {server.url}/weights: ")
    assert any(each in message for each in reason.split("|")), message
    assert len(message) < 400


@pytest.mark.parametrize(
    "answer",
    [
        endless("206 Partial Content", *FILE),
        endless("400 Bad Request"),
        endless("401 Unauthorized"),
        endless("500 Oops"),
        endless("103 Early Hints", part=b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100),
    ],
    ids=["206", "400", "401", "500", "103"],
)
def test_little_of_an_endless_answer_is_read(client: WebClient, answer: Answer) -> None:
    with hostile_server(answer) as server:
        failure(client, server.url)
        assert server.num_bytes < retries.NUM_TRIES * (2 << 20)


def test_a_cookie_that_is_none_ends_no_later_request(client: WebClient) -> None:
    with hostile_server(whole("206 Partial Content", b"a", *FILE, "Set-Cookie: a=²")) as server:
        for _ in range(2):
            assert WebSource(f"{server.url}/weights", client).open().identity.nbytes == 1000
        assert b"cookie" not in server.heads[1].lower()


def part_of(head: bytes, length: int | None = None) -> bytes:
    """Return the beginning of the answer to a request for the rest of a file of 1000 bytes."""
    begin = int(head.partition(b"bytes=")[2].partition(b"-")[0])
    ranges = f"Content-Range: bytes {begin}-999/1000\r\nContent-Length: {length or 1000 - begin}"
    return f"HTTP/1.1 206 Partial Content\r\n{ranges}\r\n\r\n".encode()


def read_all(client: WebClient, server: Hostile) -> None:
    opened = OpenWebSource(client.address(f"{server.url}/weights"), client, Content(1000, ""))
    opened.read([Piece(0, np.empty(1000, np.uint8))])


def test_a_file_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch, client: WebClient) -> None:
    monkeypatch.setattr(web_client, "NUM_TRIES", 2)

    def answer(server: Hostile, head: bytes) -> Iterator[bytes]:
        return dripping(part_of(head), b"a", 0.05)(server, head)

    with hostile_server(answer) as server:
        with pytest.raises(SourceTimeoutError, match="the server does not answer"):
            read_all(client, server)
        assert len(server.heads) == 2


def test_a_file_of_which_each_answer_has_a_byte_is_given_up(client: WebClient) -> None:
    def answer(_: Hostile, head: bytes) -> Iterator[bytes]:
        yield part_of(head, 1) + b"a"

    with hostile_server(answer) as server:
        with pytest.raises(SourceError, match="the server sends less than was asked for"):
            read_all(client, server)
        assert len(server.heads) == retries.NUM_TRIES


def test_an_error_shows_no_secrets_of_an_answer(client: WebClient) -> None:
    body = b'{"token": "swordfish", "url": "http://me:swordfish@host/x?X-Amz-Signature=swordfish"}'
    with hostile_server(whole("400 Bad Request", body)) as server:
        message = failure(client, server.url)
    assert "answers 400: {" in message
    assert "swordfish" not in message


def file() -> AbstractContextManager[Hostile]:
    return hostile_server(whole("206 Partial Content", b"a", *FILE))


def redirect(url: str, host: str = "127.0.0.1") -> AbstractContextManager[Hostile]:
    return hostile_server(whole("302 Found", b"", f"Location: {url}/weights"), host)


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433"])
def test_a_public_server_redirects_to_no_private_address(
    client: WebClient, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(reach, "is_public", lambda address: address == "127.0.0.9")
    with file() as inner, redirect(f"http://{name}:{inner.port}", "127.0.0.9") as server:
        assert "to which a server with a public address may not lead" in failure(client, server.url)
        assert inner.heads == []


def test_a_private_server_redirects_to_private_addresses(client: WebClient) -> None:
    with file() as inner, redirect(inner.url) as server:
        assert WebSource(f"{server.url}/weights", client).open().identity.nbytes == 1000


def test_a_public_server_redirects_to_public_addresses(client: WebClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "is_public", lambda _: True)
    with file() as inner, redirect(inner.url) as server:
        assert WebSource(f"{server.url}/weights", client).open().identity.nbytes == 1000


def test_a_server_behind_a_proxy_leads_to_no_private_address_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the name of the server is known then, and it may have no address here."""
    with file() as inner, redirect(inner.url) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        client = WebClient()
        assert "to which a server with a public address may not lead" in failure(client, "http://models.invalid")
        client.close()
        assert (len(proxy.heads), len(inner.heads)) == (1, 0)
