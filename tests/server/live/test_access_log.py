"""The access log: one line for each finished request, over a socket, from the real engine."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from server.api.core.service.service import Service
from server.engine.text.codec import Codec
from tests.server.engine.fakes import Rig
from tests.server.live.conftest import FakeServer, LiveServer, serving_rig
from tests.server.live.requests import ask, complete, headers_of, post

CHAT = {"messages": [{"role": "user", "content": "Hi"}], "model": "fake", "max_tokens": 4}
DIALECTS = {
    "/v1/completions": {"prompt": "Hi there, you", "max_tokens": 4},
    "/v1/chat/completions": CHAT,
    "/v1/messages": CHAT,
    "/v1/responses": {"input": "Hi", "model": "fake", "max_output_tokens": 16},
}


@pytest.fixture(autouse=True)
def _level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def line_of(caplog: pytest.LogCaptureFixture, server: LiveServer) -> dict[str, Any]:
    """Return the fields of the only line, once the request has ended."""
    server.wait_until_left()
    [fields] = [vars(record)["fields"] for record in caplog.records if record.getMessage() == "request"]
    assert isinstance(fields, dict)
    return fields


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", DIALECTS)
def test_every_dialect_is_reported_alike(
    live: FakeServer, caplog: pytest.LogCaptureFixture, route: str, stream: bool
) -> None:
    answer = ask(live.port, post(route, **DIALECTS[route], stream=stream))
    line = line_of(caplog, live)
    num_tokens = 16 if route == "/v1/responses" else 4
    assert line["request_id"] == headers_of(answer)["x-request-id"]
    assert (line["route"], line["status"], line["model"], line["choices"]) == (route, 200, "fake", 1)
    assert line["id"].encode() in answer
    assert line["completion_tokens"] == num_tokens
    num_prompt_tokens = line["prompt_tokens"]
    assert num_prompt_tokens == (13 if route == "/v1/completions" else len("user: Hi\nassistant: "))
    assert (line["expert_misses"], line["expert_bytes_read"]) == (num_prompt_tokens, num_prompt_tokens << 10)
    assert line["expert_stall_seconds"] == num_prompt_tokens
    assert 0 <= line["queue_seconds"] <= line["first_token_seconds"] <= line["seconds"]
    assert line["finish_reasons"] == ["length"]
    assert "error" not in line
    assert "Hi" not in str(caplog.records[-1].__dict__)


def test_a_dialect_without_ids_is_reported_too(live: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    ask(live.port, post("/api/chat", messages=CHAT["messages"], options={"num_predict": 4}))
    line = line_of(caplog, live)
    assert (line["route"], line["completion_tokens"], line["finish_reasons"]) == ("/api/chat", 4, ["length"])


def test_choices_share_one_line(live: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    ask(live.port, post("/v1/completions", prompt=["one", "three"], n=2, max_tokens=5))
    line = line_of(caplog, live)
    assert (line["choices"], line["prompt_tokens"], line["completion_tokens"]) == (4, 8, 20)
    assert line["finish_reasons"] == ["length"] * 4


def test_inputs_of_an_embedding_share_one_line(live: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    ask(live.port, post("/v1/embeddings", input=["one", "three"]))
    line = line_of(caplog, live)
    assert (line["inputs"], line["prompt_tokens"], line["expert_misses"]) == (2, 8, 8)
    assert not line.keys() & {"choices", "completion_tokens", "first_token_seconds", "finish_reasons"}


def test_a_client_that_leaves_a_stream_is_logged(live: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    with live.connect() as connection:
        connection.sendall(complete(b"endless", max_tokens=5000, stream=True))
        assert connection.recv(100)
    line = line_of(caplog, live)
    assert (line["status"], line["error"], line["finish_reasons"]) == (200, "client_disconnected", [None])
    assert "expert_misses" not in line  # nobody knows


@pytest.mark.parametrize(("stream", "status"), [(False, 504), (True, 200)])
def test_a_failure_is_named(live: FakeServer, caplog: pytest.LogCaptureFixture, stream: bool, status: int) -> None:
    clock = iter(range(10_000))
    live.rig.engine.clock = lambda: float(next(clock))  # a second a step
    ask(live.port, complete(b"slow", max_tokens=500, timeout=20, stream=stream))
    line = line_of(caplog, live)
    assert (line["status"], line["error"], line["finish_reasons"]) == (status, "timeout", [None])


def test_a_refused_request_is_logged_without_text_of_the_client(
    live: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    ask(live.port, post("/v1/completions", prompt="secret", model="a\r\n\x1b[31mforged"))
    line = line_of(caplog, live)
    assert (line["route"], line["status"], line["error"]) == ("/v1/completions", 404, "model_not_found")
    assert line.keys() == {"request_id", "route", "status", "seconds", "error"}


def test_an_unknown_path_is_quoted(live: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    ask(live.port, post("/v1/%0D%0Aforged%1B", model="x"))
    line = line_of(caplog, live)
    assert (line["route"], line["status"]) == (r"/v1/\r\nforged\x1b", 404)


def test_gets_are_not_reported(live: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    ask(live.port, b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    live.wait_until_left()
    assert not [record for record in caplog.records if record.getMessage() == "request"]


def test_prompts_are_logged_on_request(codec: Codec, caplog: pytest.LogCaptureFixture) -> None:
    service = Service("1", logs_prompts=True)
    with serving_rig(Rig(num_blocks=256), codec, service=service) as server:
        ask(server.port, post("/v1/completions", prompt=["one\n", "two"], n=2, max_tokens=3))
        line = line_of(caplog, server)
    assert line["prompts"] == ["one\n", "two"]
    json.dumps(line)
