"""A worker thread dies, or never returns: requests end with an error, ``/health`` turns red, the rest is served.

The engine's own thread is in ``tests/server/live/test_failures.py``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from expert_store import BudgetError
from expert_store.io import read_watch, reader
from expert_store.io.expert_read import ExpertRead
from tests.expert_store.gated_reads import GatedReads
from tests.expert_store.late_device import LateDevice
from tests.faults.bundled import get, serving_bundled, state_of, text_of
from tests.server.live.conftest import LiveServer
from tests.server.live.requests import ask, error_of, post, status_of

ONCE = post("/v1/completions", prompt="Once upon a time", max_tokens=8, temperature=0)


def wait_for(server: LiveServer, path: str, state: tuple[int, str]) -> None:
    while state_of(ask(server.port, get(path))) != state:
        threading.Event().wait(0.05)


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object) -> None:
        raise error

    return fail


@pytest.mark.slow
def test_a_reader_that_dies_ends_requests_with_an_error_and_fails_health(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serving_bundled(prefetch="off") as (server, _):
        assert state_of(ask(server.port, get("/health"))) == (200, "ok")
        monkeypatch.setattr(ExpertRead, "parts", raising(SystemExit("killed")))
        for _ in range(2):
            answer = ask(server.port, ONCE)
            assert status_of(answer) == 500
            assert error_of(answer)["message"] == "the model failed to compute this request; see the log"
        assert state_of(ask(server.port, get("/health"))) == (503, "failing")
        assert state_of(ask(server.port, get("/ready"))) == (503, "failing")
    assert "a thread that reads experts died" in caplog.text


@pytest.mark.slow
def test_a_copier_that_dies_ends_requests_with_an_error_and_fails_health(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving_bundled(prefetch="off", device_expert_memory="25%") as (server, _):
        monkeypatch.setattr(LateDevice, "copy", raising(SystemExit("killed")))
        assert status_of(ask(server.port, ONCE)) == 500
        assert state_of(ask(server.port, get("/health"))) == (503, "failing")


@pytest.mark.slow
def test_a_copy_that_fails_in_any_way_fails_its_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving_bundled(prefetch="off", device_expert_memory="25%") as (server, _):
        with monkeypatch.context() as patch:
            patch.setattr(LateDevice, "copy", raising(ValueError("sizes differ")))
            assert status_of(ask(server.port, ONCE)) == 500
        assert status_of(ask(server.port, ONCE)) == 200
        assert state_of(ask(server.port, get("/health"))) == (200, "ok")


def test_without_memory_to_read_with_the_start_fails_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "page_aligned", raising(OSError(12, "Cannot allocate memory")))
    with pytest.raises(BudgetError, match="cannot allocate memory to read experts with"), serving_bundled():
        pass


@pytest.mark.slow
def test_a_timeout_is_kept_while_a_read_does_not_return(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving_bundled(prefetch="off") as (server, _), monkeypatch.context() as patch:
        reads = GatedReads(patch)
        answer = ask(server.port, post("/v1/completions", prompt="Once", max_tokens=8, timeout=0.5))
        assert status_of(answer) == 504
        assert error_of(answer)["message"] == "the request was not done within 0.5 seconds"
        reads.is_open.set()
        finished = server.engine.statistics.finished
        while not any(finished.values()):
            threading.Event().wait(0.01)
        assert finished["deadline"] == 1


@pytest.mark.slow
def test_a_read_that_does_not_return_fails_its_request_by_name_and_health_until_it_does(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(read_watch, "READ_SECONDS", 0.5)
    monkeypatch.setattr(read_watch, "WATCH_SECONDS", 0.1)
    with serving_bundled(prefetch="off") as (server, loaded), ThreadPoolExecutor(1) as clients:
        with monkeypatch.context() as patch:
            reads = GatedReads(patch)
            waiting = clients.submit(ask, server.port, ONCE)
            wait_for(server, "/health", (503, "failing"))
            assert state_of(ask(server.port, get("/ready"))) == (503, "failing")
            error = error_of(waiting.result())
            assert error["message"].endswith("can't be read; see the log")
            assert error["message"].startswith("expert ")
            reads.is_open.set()
            wait_for(server, "/health", (200, "ok"))
        monkeypatch.setattr(read_watch, "READ_SECONDS", 30.0)
        first, again = (text_of(ask(server.port, ONCE)) for _ in range(2))
        assert first == again
        loaded.store.check_integrity()
    assert "has not ended in" in caplog.text
    assert "the disk or the network storage does not answer" in caplog.text
