"""Boundaries between requests on one connection, also after an upgrade request or a broken one."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest

from tests.server.engine.fakes import continuation
from tests.server.live.conftest import FakeServer
from tests.server.live.event_loop_stalls import StallWatch
from tests.server.live.requests import ask, error_of, status_of

BODY = b'{"prompt": [97], "max_tokens": 3, "temperature": 0}'
POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
UPGRADES = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n",
)
LAST = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
WITH_LENGTH = b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
IN_CHUNKS = b"Transfer-Encoding: chunked\r\n\r\n5\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (BODY[:5], len(BODY) - 5, BODY[5:])


@pytest.mark.parametrize("body", [WITH_LENGTH, IN_CHUNKS], ids=["length", "chunks"])
@pytest.mark.parametrize("upgrade", UPGRADES, ids=["websocket", "h2c"])
def test_an_upgrade_request_is_ignored(live: FakeServer, upgrade: bytes, body: bytes) -> None:
    """The request is answered as any other; HTTP clients that offer HTTP/2 expect that."""
    answers = ask(live.port, 2 * (POST + upgrade + body) + LAST).split(b"HTTP/1.1 200 OK\r\n")[1:]
    texts = [json.loads(each.partition(b"\r\n\r\n")[2])["choices"][0]["text"] for each in answers[:2]]
    assert texts == 2 * [continuation(b"a", 3)]
    assert answers[2].endswith(b'{"status":"ok"}')


@pytest.mark.parametrize("upgrade", UPGRADES, ids=["websocket", "h2c"])
def test_a_body_is_not_parsed_as_a_request(live: FakeServer, upgrade: bytes) -> None:
    """The body looks like a request, and arrives after a head that asks for an upgrade."""
    hidden = b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with live.connect() as connection:
        connection.sendall(POST + upgrade + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(hidden))
        assert connection.recv(1 << 16) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(hidden + LAST)
        answers = b""
        while more := connection.recv(1 << 16):
            answers += more
    assert [each[:3] for each in answers.split(b"HTTP/1.1 ")[1:]] == [b"400", b"200"]
    assert answers.endswith(b'{"status":"ok"}')


@pytest.mark.parametrize(
    "rest",
    [
        b"Transfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n1\r\n{oops\r\n",
        b"Transfer-Encoding: xchunked\r\n\r\n",
    ],
    ids=["size", "length", "encoding"],
)
def test_a_body_that_breaks_off_is_answered_with_an_error(live: FakeServer, rest: bytes) -> None:
    answer = ask(live.port, POST + rest)
    assert (status_of(answer), error_of(answer)["message"]) == (400, "Invalid HTTP request received.")
    live.wait_until_idle()


def test_requests_that_wait_for_others_are_counted(live: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    """Parsing them would occupy the loop; requests without an answer are dropped silently."""
    request = b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert ask(live.port, 60 * request + LAST).count(b"HTTP/1.1 200 OK") == 61
    with StallWatch(live.loop) as watch, live.connect() as connection, suppress(ConnectionError):
        connection.sendall(5000 * request)
        while connection.recv(1 << 16):
            pass
    assert watch.seconds < 0.05, watch.place
    live.wait_until_left()
    assert "Exception" not in caplog.text
