"""SIGTERM with streams in flight: they finish in time, or end with an error; a second signal ends them at once."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from tests.e2e.processes import Server, serving

pytestmark = pytest.mark.slow

MANY_TOKENS = 2000  # seconds of work


def body(max_tokens: int = MANY_TOKENS, *, stream: bool = True) -> dict[str, object]:
    return {"prompt": "Once", "max_tokens": max_tokens, "ignore_eos": True, "stream": stream}


@contextmanager
def streaming(server: Server, max_tokens: int = MANY_TOKENS) -> Iterator[Iterator[str]]:
    """Return the events of a stream that has begun."""
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body(max_tokens), timeout=60) as response:
        lines = (line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: "))
        next(lines)
        yield lines


def terminate(server: Server) -> None:
    """Send SIGTERM, and wait until ``/ready`` reports it."""
    server.process.send_signal(signal.SIGTERM)
    while not server.is_draining():
        pass


@contextmanager
def watching(server: Server) -> Iterator[Iterator[str]]:
    """The expert stream, which never ends by itself."""
    with httpx.stream("GET", f"{server.url}/v1/experts/stream?interval=60", timeout=60) as response:
        lines = response.iter_lines()
        assert next(lines) == "event: snapshot"
        yield lines


def test_running_streams_finish_and_new_requests_are_refused() -> None:
    with serving("--shutdown-timeout", "3600") as server, watching(server) as experts, streaming(server, 600) as events:
        terminate(server)
        ready, health = (httpx.get(f"{server.url}/{name}") for name in ("ready", "health"))
        assert (ready.status_code, ready.json()) == (503, {"status": "draining"})
        assert health.status_code == 200
        refusal = httpx.post(f"{server.url}/v1/completions", json=body())
        assert refusal.status_code == 503
        assert refusal.json()["error"]["code"] == "service_unavailable"
        assert (refusal.headers["Retry-After"], refusal.headers["Connection"]) == ("1", "close")
        assert not any(line.startswith("event: ") for line in experts)
        rest = list(events)
        assert json.loads(rest[-2])["choices"][0]["finish_reason"] == "length"
        assert rest[-1] == "[DONE]"
        status, out, err = server.end()
    assert (status, out) == (0, "")
    assert "running requests: " in err
    assert "Traceback" not in err


def test_streams_that_do_not_end_in_time_end_with_an_error() -> None:
    with serving("--shutdown-timeout", "0.5") as server, ThreadPoolExecutor(1) as clients, streaming(server) as events:
        before = server.total("prompt_tokens_total")
        whole = clients.submit(httpx.post, f"{server.url}/v1/completions", json=body(stream=False), timeout=60)
        while server.total("prompt_tokens_total") == before:
            pass
        server.process.send_signal(signal.SIGTERM)
        *_, error, done = events
        assert json.loads(error)["error"]["message"] == "the server is shutting down"
        assert done == "[DONE]"
        answer = whole.result()
        assert (answer.status_code, answer.json()["error"]["message"]) == (503, "the server is shutting down")
        assert answer.headers["Retry-After"] == "1"
        status, _, err = server.end()
    assert status == 0
    assert "requests cut off by the shutdown: 2" in err
    assert "Traceback" not in err


def test_a_second_signal_ends_at_once() -> None:
    with serving("--shutdown-timeout", "3600") as server, streaming(server) as events:
        terminate(server)
        server.process.send_signal(signal.SIGTERM)
        *_, error, done = events
        assert json.loads(error)["error"]["message"] == "the server is shutting down"
        assert done == "[DONE]"
        status, _, err = server.end()
    assert status == 0
    assert "Traceback" not in err
