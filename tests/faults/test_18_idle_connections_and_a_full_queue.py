"""Thousands of idle connections; a full queue, whose refusals have ``Retry-After``, and which recovers."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.server.engine.fakes import continuation
from tests.server.live.conftest import FakeServer
from tests.server.live.requests import ask, complete

NUM_IDLE = 10_000


@pytest.fixture
def many_files() -> Iterator[int]:
    """Return how many connections this process may open, counting both ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield min(NUM_IDLE, (hard - 500) // 2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def is_answered(live: FakeServer, prompt: bytes) -> bool:
    body = json.loads(ask(live.port, complete(prompt, max_tokens=3)).partition(b"\r\n\r\n")[2])
    return body["choices"][0]["text"] == continuation(prompt, 3)


@pytest.mark.slow
def test_idle_connections_block_no_others(live: FakeServer, many_files: int) -> None:
    with contextlib.ExitStack() as idle:
        for _ in range(many_files):
            idle.enter_context(socket.create_connection(("127.0.0.1", live.port)))
        assert is_answered(live, b"among them")
    live.wait_until_left()
    assert is_answered(live, b"after them")


def test_a_full_queue_answers_429_with_retry_after(live: FakeServer) -> None:
    gate = threading.Event()
    live.rig.model.before_step = lambda: gate.wait(30)
    with ThreadPoolExecutor(3) as clients:
        many = [clients.submit(ask, live.port, complete(b"q", max_tokens=2, n=128)) for _ in range(3)]
        while not (refused := [client for client in many if client.done()]):
            gate.wait(0.01)
        gate.set()
        answers = [client.result() for client in many]
    assert refused[0].result().startswith(b"HTTP/1.1 429")
    assert b"retry-after: 1" in refused[0].result().lower()
    assert sorted(answer[9:12] for answer in answers) == [b"200", b"200", b"429"]
    assert is_answered(live, b"afterwards")
