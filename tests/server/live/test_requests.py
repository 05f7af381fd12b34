"""``/v1/requests`` over a socket: running and waiting requests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from server.api.core.access.api_keys import KeyRing, Keys
from server.api.core.service.service import Service
from server.engine.text.codec import Codec
from tests.server.engine.fakes import Rig
from tests.server.live.conftest import FakeServer, serving_rig
from tests.server.live.requests import ask_together, complete, post


@dataclass
class Steps:
    """Makes each step of the engine wait until the test lets it run."""

    begun: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    allowed: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def begin(self) -> None:
        self.begun.release()
        self.allowed.acquire(timeout=30)

    def next(self) -> None:
        """Let the waiting step run, and wait for the next one."""
        self.allowed.release()
        assert self.begun.acquire(timeout=30)

    def release_all(self) -> None:
        self.allowed.release(1000)


@pytest.fixture
def service() -> Service:
    return Service("1")


@pytest.fixture
def steps() -> Iterator[Steps]:
    steps = Steps()
    yield steps
    steps.release_all()


@pytest.fixture
def server(codec: Codec, service: Service, steps: Steps) -> Iterator[FakeServer]:
    rig = Rig(max_running=2)  # 32 tokens a step
    rig.model.before_step = steps.begin
    with serving_rig(rig, codec, service=service) as server:
        yield server
        steps.release_all()


def listed(server: FakeServer, number: int | None = None) -> list[dict[str, Any]]:
    """Return the listed requests, once there are ``count``."""
    while True:
        answer = httpx.get(f"http://127.0.0.1:{server.port}/v1/requests")
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body["object"] == "list"
        if number is None or len(body["data"]) == number:
            data: list[dict[str, Any]] = body["data"]
            return data


def of_each(data: list[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(each[name] for name in names) for each in data]


def test_a_request_is_followed_from_its_prompt_to_its_end(server: FakeServer, steps: Steps) -> None:
    assert listed(server) == []
    answers: list[bytes] = []
    request = complete(b"x" * 40, max_tokens=3)
    client = threading.Thread(target=lambda: answers.extend(ask_together(server.port, [request])))
    client.start()
    assert steps.begun.acquire(timeout=30)
    (only,) = listed(server)
    told = {"object": "request", "choice": 0, "model": "fake", "state": "prefill", "priority": 0, "preemptions": 0}
    told |= {"prompt_tokens": 40, "cached_tokens": 0, "completion_tokens": 0, "max_tokens": 3}
    assert only.items() >= told.items()
    assert only["age_seconds"] >= only["queue_seconds"] >= 0
    names = ("state", "cached_tokens", "completion_tokens")
    found = []
    for _ in range(3):
        steps.next()
        found += of_each(listed(server), *names)
    assert found == [("prefill", 32, 0), ("decode", 40, 1), ("decode", 41, 2)]
    (only,) = listed(server)
    assert only["greenroom"] == {
        "expert_requests": 41,
        "expert_misses": 40,
        "expert_bytes_read": 40 << 10,
        "expert_stall_seconds": 40,
    }
    steps.release_all()
    client.join()
    assert only["id"].encode() in answers[0]
    assert listed(server, 0) == []


def test_running_choices_and_the_queue_are_listed_in_order(server: FakeServer, steps: Steps) -> None:
    requests = [complete(b"first", max_tokens=20, n=2), complete(b"later", max_tokens=9, priority=1)]
    clients = [threading.Thread(target=ask_together, args=(server.port, [request])) for request in requests]
    clients[0].start()
    assert steps.begun.acquire(timeout=30)
    while of_each(listed(server, 2), "state", "choice") != [("decode", 0), ("decode", 1)]:
        steps.next()
    clients[1].start()
    data = listed(server, 3)
    assert of_each(data, "state", "choice", "priority")[2] == ("waiting", 0, 1)
    assert data[2]["queue_seconds"] == data[2]["age_seconds"]
    assert data[0]["id"] == data[1]["id"] != data[2]["id"]
    steps.next()  # it is the scheduler's now, and no place is free
    assert of_each(listed(server), "state") == [("decode",), ("decode",), ("waiting",)]
    steps.release_all()
    for client in clients:
        client.join()


def test_a_client_that_left_is_listed_no_longer(server: FakeServer, steps: Steps) -> None:
    with server.connect() as connection:
        connection.sendall(complete(b"gone soon", max_tokens=9))
        assert steps.begun.acquire(timeout=30)
        assert len(listed(server)) == 1
    assert listed(server, 0) == []


def test_it_requires_an_admin_and_shows_no_prompts(server: FakeServer, service: Service, steps: Steps) -> None:
    url = f"http://127.0.0.1:{server.port}/v1/requests"
    with server.connect() as connection:
        connection.sendall(post("/v1/completions", prompt="a secret", max_tokens=9))
        assert steps.begun.acquire(timeout=30)
        assert "secret" not in httpx.get(url).text
    service.keys = Keys(KeyRing(["user"]), KeyRing(["admin"]))
    found = [httpx.get(url, headers={"x-api-key": key}).status_code for key in ("wrong", "user", "admin")]
    assert [httpx.get(url).status_code, *found] == [401, 401, 403, 200]


def test_while_the_model_is_loading_there_is_nothing_to_list(server: FakeServer, service: Service) -> None:
    service.model = None
    answer = httpx.get(f"http://127.0.0.1:{server.port}/v1/requests")
    assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_error")
