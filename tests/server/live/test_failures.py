"""A client gets an answer however its request ends: over a socket, from the real engine."""

from __future__ import annotations

import json

from tests.server.engine.fakes import continuation
from tests.server.live.conftest import FakeServer
from tests.server.live.requests import ask, complete, error_of, status_of

GET_HEALTH = b"GET /health HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"


def test_a_dead_engine_ends_streams_with_an_error_and_fails_health(live: FakeServer) -> None:
    def die_later() -> None:
        if len(live.rig.model.steps) == 5:
            raise KeyError("a bug")

    live.rig.model.before_step = die_later
    assert status_of(ask(live.port, GET_HEALTH)) == 200
    answer = ask(live.port, complete(b"last", max_tokens=50, stream=True)).decode()
    assert answer.count('"text":') == 5
    assert "the engine died" in answer
    assert answer.rstrip().removesuffix("0").rstrip().endswith("data: [DONE]")
    assert status_of(ask(live.port, GET_HEALTH)) == 503
    assert status_of(ask(live.port, complete(b"too late", max_tokens=5))) == 503


def test_a_request_past_its_timeout_ends_with_504_and_should_not_be_retried(live: FakeServer) -> None:
    clock = iter(range(10_000))
    live.rig.engine.clock = lambda: float(next(clock))  # a second a step
    answer = ask(live.port, complete(b"slow", max_tokens=500, timeout=20))
    assert status_of(answer) == 504
    assert b"x-should-retry: false" in answer
    assert error_of(answer)["message"] == "the request was not done within 20 seconds"
    again = ask(live.port, complete(b"fast", max_tokens=3, timeout=20))
    assert json.loads(again.partition(b"\r\n\r\n")[2])["choices"][0]["text"] == continuation(b"fast", 3)
