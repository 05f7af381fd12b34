"""A body arrives in 65,000 chunks of one byte: it is read in bounded memory, and others are served meanwhile."""

from __future__ import annotations

import json

from tests.server.engine.fakes import continuation
from tests.server.live.conftest import FakeServer
from tests.server.live.requests import ask, complete

NUM_CHUNKS = 65_000


def test_it_is_read_while_others_are_served(live: FakeServer) -> None:
    body = json.dumps({"prompt": list(b"dust"), "max_tokens": 4, "temperature": 0}).ljust(NUM_CHUNKS).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    dust = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    with live.connect() as connection:
        connection.sendall(head + dust[: len(dust) // 2])
        assert ask(live.port, complete(b"other", max_tokens=3)).startswith(b"HTTP/1.1 200")
        connection.sendall(dust[len(dust) // 2 :])
        answer = b""
        while more := connection.recv(1 << 16):
            answer += more
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["choices"][0]["text"] == continuation(b"dust", 4)
