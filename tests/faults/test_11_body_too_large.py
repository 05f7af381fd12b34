"""A body of 100 MB, without a length, with a wrong length, or compressed a thousandfold."""

from __future__ import annotations

import gzip
import json
import select
import threading

import pytest

from server.api.core.json_text import reader as json_reader
from server.api.core.service.body import MAX_BODY_BYTES, PARSED_FACTOR
from server.engine.interface import RequestMemory
from server.engine.text.codec import Codec
from tests.server.engine.fakes import Rig, continuation
from tests.server.live.conftest import FakeServer, serving_rig
from tests.server.live.requests import ask, complete, error_of, headers_of, post_bytes, status_of

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
PIECE = b'"' + b"a" * (1 << 20)
NUM_PIECES = 100


def still_answers(live: FakeServer) -> bool:
    body = json.loads(ask(live.port, complete(b"next", max_tokens=3)).partition(b"\r\n\r\n")[2])
    return body["choices"][0]["text"] == continuation(b"next", 3)


def test_a_length_that_is_too_large_is_refused_before_the_body_comes(shared_live: FakeServer) -> None:
    answer = ask(shared_live.port, HEAD + b"Content-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1))
    assert status_of(answer) == 413
    assert error_of(answer)["message"] == "The body must not be longer than 24 MiB."
    assert still_answers(shared_live)


def test_a_body_without_a_length_is_refused_once_it_is_too_long(shared_live: FakeServer) -> None:
    """The client sends all of its 100 MB; the server keeps nothing of them."""
    with shared_live.connect() as connection:
        connection.sendall(HEAD.replace(b"Connection: close\r\n", b"") + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(NUM_PIECES):
            connection.sendall(b"%x\r\n%s\r\n" % (len(PIECE), PIECE))
        assert status_of(connection.recv(1 << 16)) == 413
    assert still_answers(shared_live)


def test_a_body_that_is_longer_than_it_says_is_cut_there(shared_live: FakeServer) -> None:
    """The rest is not a request; the sender gets an error or is disconnected."""
    body = b'{"prompt": [97], "max_tokens": 2, "temperature": 0}'
    answer = ask(shared_live.port, HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body + b"and a lot more " * 1000)
    assert status_of(answer) == 200
    assert still_answers(shared_live)


@pytest.mark.parametrize("encoding", ["gzip", "br", "gzip, identity", "GZIP"])
def test_a_compressed_body_is_refused_without_decompression(shared_live: FakeServer, encoding: str) -> None:
    bomb = gzip.compress(b'{"prompt": "' + b"a" * (8 << 20) + b'"}')
    head = HEAD + f"Content-Encoding: {encoding}\r\nContent-Length: {len(bomb)}\r\n\r\n".encode()
    answer = ask(shared_live.port, head + bomb)
    assert status_of(answer) == 415
    assert f"content-encoding '{encoding}'" in error_of(answer)["message"]
    assert still_answers(shared_live)


def test_as_many_values_as_fit_into_a_body_are_refused(
    shared_live: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each value would take twenty times the memory of its text."""
    monkeypatch.setattr(json_reader, "MAX_VALUES", 1000)
    monkeypatch.setattr(json_reader, "MAX_TOKEN_IDS", 900)
    for value in (b"[]", b"{}", b'"a"', b"-1", b"1.5", b"null", b"1"):
        answer = ask(shared_live.port, post_bytes("/v1/completions", b'{"x": [' + (value + b",") * 1000 + b"1]}"))
        too_many = "900 numbers in lists" if value == b"1" else "1000 values"
        assert error_of(answer)["message"] == f"'x' must not hold more than {too_many}."


def test_concurrent_bodies_share_the_memory_of_requests(codec: Codec) -> None:
    """A body that does not fit gets 503; the others release their memory however they end."""
    memory = RequestMemory(lambda: PARSED_FACTOR * 300_000, wait_seconds=0.0)
    with serving_rig(Rig(), codec, memory=memory) as server:
        with server.connect() as first, server.connect() as second:
            for connection in (first, second):
                connection.sendall(HEAD + b"Content-Length: 200000\r\n\r\n" + b" " * 199_999)
            refused, *_ = select.select([first, second], [], [])[0]
            answer = refused.recv(1 << 16)
        assert status_of(answer) == 503
        assert headers_of(answer)["retry-after"] == "1"
        server.wait_until_left()
        assert memory.held_bytes == 0
        assert still_answers(server)


def test_a_body_keeps_its_memory_until_it_is_answered(codec: Codec) -> None:
    memory, rig = RequestMemory(lambda: 100_000, wait_seconds=0.0), Rig()
    is_asked, may_go_on = threading.Event(), threading.Event()

    def wait() -> None:
        is_asked.set()
        may_go_on.wait()

    rig.model.before_step = wait
    with serving_rig(rig, codec, memory=memory) as server:
        with server.connect() as first:
            first.sendall(complete(b"first", max_tokens=1, user="u" * 10_000))
            is_asked.wait()
            held = memory.held_bytes
            answer = ask(server.port, complete(b"second", max_tokens=1, user="u" * 20_000))
            may_go_on.set()
            first.recv(1 << 16)
        assert held > PARSED_FACTOR * 10_000
        assert status_of(answer) == 503
        assert "of the 97.7 KiB for requests: try again later" in error_of(answer)["message"]
