"""A client closes during its stream: generation stops within one step, and its blocks are freed."""

from __future__ import annotations

import socket
import threading

import pytest

from tests.server.live.conftest import FakeServer
from tests.server.live.requests import complete


def read_three_events(connection: socket.socket) -> None:
    received = b""
    while received.count(b"data: ") < 3:
        received += connection.recv(1 << 16)


def test_tokens_stop_within_one_step(live: FakeServer) -> None:
    steps = threading.Semaphore(3)
    live.rig.model.before_step = lambda: steps.acquire(timeout=30)
    with live.connect() as connection:
        connection.sendall(complete(b"going", max_tokens=500, stream=True))
        read_three_events(connection)
        num_steps = len(live.rig.model.steps)
    live.wait_until_left()
    steps.release(500)
    live.wait_until_idle()
    assert len(live.rig.model.steps) <= num_steps + 1
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
    steps = threading.Semaphore(3)
    live.rig.model.before_step = lambda: steps.acquire(timeout=30)
    with live.connect() as connection:
        connection.sendall(keep_alive(complete(b"going", max_tokens=500, stream=True)) + with_first)
        read_three_events(connection)
        connection.sendall(later)
        num_steps = len(live.rig.model.steps)
    live.wait_until_left()
    steps.release(500)
    live.wait_until_idle()
    assert len(live.rig.model.steps) <= num_steps + 1
    assert live.engine.statistics.finished == {"abort": 1}
    assert not caplog.records
