"""A client closes during its stream: generation stops within one step, and its blocks are freed."""

from __future__ import annotations

import socket
import sys
import threading

import pytest

from tests.server.live.conftest import FakeServer
from tests.server.live.requests import complete

ALLOWED = 4  # steps before the client closes: the events of three of them are sent, each during the next step


def allow_steps(live: FakeServer) -> threading.Semaphore:
    """Let the model run a few steps, and then wait until more are released."""
    steps = threading.Semaphore(ALLOWED)
    live.rig.model.before_step = lambda: None if steps.acquire(timeout=30) else sys.exit("no step was allowed")
    return steps


def read_three_events(connection: socket.socket) -> None:
    received = b""
    while received.count(b"data: ") < 3:
        received += connection.recv(1 << 16)


def test_tokens_stop_within_one_step(live: FakeServer) -> None:
    steps = allow_steps(live)
    with live.connect() as connection:
        connection.sendall(complete(b"going", max_tokens=500, stream=True))
        read_three_events(connection)
    live.wait_until_left()
    steps.release(500)
    live.wait_until_idle()
    assert len(live.rig.model.steps) <= ALLOWED + 1
    assert live.engine.statistics.finished == {"abort": 1}
    assert live.engine.statistics.kv_cache_usage == 0


def keep_alive(request: bytes) -> bytes:
    return request.replace(b"Connection: close\r\n", b"")


SECOND = keep_alive(complete(b"second", max_tokens=500, stream=True))


@pytest.mark.parametrize(
    ("with_first", "later"),
    [(SECOND, b""), (b"", SECOND), (SECOND, SECOND[:-5]), (b"", keep_alive(complete(b"x" * 25_000)))],
    ids=["in one write", "in a second write", "incomplete", "with more than is read"],
)
def test_tokens_stop_while_other_requests_wait_on_the_connection(
    live: FakeServer, with_first: bytes, later: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    steps = allow_steps(live)
    with live.connect() as connection:
        connection.sendall(keep_alive(complete(b"going", max_tokens=500, stream=True)) + with_first)
        read_three_events(connection)
        connection.sendall(later)
    live.wait_until_left()
    steps.release(500)
    live.wait_until_idle()
    assert len(live.rig.model.steps) <= ALLOWED + 1
    assert live.engine.statistics.finished == {"abort": 1}
    assert not caplog.records
