"""Spans of requests: over a socket, from the real engine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pytest

from server.api.core.service.service import Service
from server.api.core.service.tracer import Span
from server.engine.pass_planning import PassLimits
from server.engine.text.codec import Codec
from server.model.stalls import Stall
from tests.server.engine.fakes import Rig
from tests.server.live.conftest import FakeServer, serving_rig
from tests.server.live.requests import ask, complete, post
from tests.server.live.test_access_log import DIALECTS

OPERATIONS = {"/v1/completions": "text_completion"}


@dataclass
class Recorder:
    """A tracer that keeps its spans."""

    spans: list[Span] = field(default_factory=list)

    def record(self, span: Span, headers: Mapping[str, str]) -> str:
        assert headers["host"]
        self.spans.append(span)
        return "5" * 32


@dataclass
class TracedServer:
    """A live server with a tracer that keeps its spans."""

    live: FakeServer
    recorder: Recorder

    def span(self) -> Span:
        """Return the span of the only request, once it has ended."""
        self.live.wait_until_left()
        [span] = self.recorder.spans
        assert_within(span)
        return span

    def work(self) -> Span:
        """Return the span of the engine's work."""
        [preparation, work] = self.span().children
        assert preparation.name == "prepare"
        assert preparation.ended_at == work.started_at
        return work


@pytest.fixture
def traced(codec: Codec) -> Iterator[TracedServer]:
    recorder = Recorder()
    rig = Rig(num_blocks=2048, max_running=64, max_batched_tokens=256, max_queued=256)
    with serving_rig(rig, codec, service=Service("1", tracer=recorder)) as live:
        yield TracedServer(live, recorder)


def assert_within(span: Span) -> None:
    """Each child lies within its parent."""
    for child in span.children:
        assert span.started_at <= child.started_at <= child.ended_at <= span.ended_at
        assert_within(child)


def names(span: Span) -> list[str]:
    return [child.name for child in span.children]


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", DIALECTS)
def test_every_dialect_is_reported_alike(traced: TracedServer, route: str, stream: bool) -> None:
    ask(traced.live.port, post(route, **DIALECTS[route], stream=stream))
    span, operation = traced.span(), OPERATIONS.get(route, "chat")
    assert (span.name, span.is_failed) == (f"POST {route}", False)
    assert span.attributes["http.response.status_code"] == 200
    assert (span.attributes["http.route"], span.attributes["url.path"]) == (route, route)
    assert "error.type" not in span.attributes
    work = traced.work()
    assert work.name == f"{operation} fake"
    assert names(work) == ["queue", "prefill", "decode"]
    queue, prefill, decode = work.children
    assert (queue.started_at, queue.ended_at, prefill.ended_at) == (
        work.started_at,
        prefill.started_at,
        decode.started_at,
    )
    num_prompt_tokens = 13 if route == "/v1/completions" else len("user: Hi\nassistant: ")
    assert work.attributes["gen_ai.operation.name"] == operation
    assert work.attributes["gen_ai.response.model"] == "fake"
    assert work.attributes["gen_ai.request.stream"] is stream
    assert work.attributes["gen_ai.usage.input_tokens"] == num_prompt_tokens
    assert work.attributes["gen_ai.usage.output_tokens"] == (16 if route == "/v1/responses" else 4)
    assert work.attributes["gen_ai.response.finish_reasons"] == ["length"]
    misses = [span.attributes["greenroom.expert.misses"] for span in (work, prefill, decode)]
    assert misses == [num_prompt_tokens, num_prompt_tokens, 0]
    assert "Hi" not in str(span)


def test_spans_have_sampling_parameters(traced: TracedServer) -> None:
    ask(traced.live.port, post("/v1/completions", prompt="a", max_tokens=2, top_k=5, seed=7, presence_penalty=0.5))
    attributes = traced.work().attributes
    told = {name.removeprefix("gen_ai.request."): value for name, value in attributes.items() if ".request." in name}
    assert told == {
        "model": "fake",
        "max_tokens": 2,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 5,
        "seed": 7,
        "presence_penalty": 0.5,
        "stream": False,
    }


def test_each_choice_has_phases_of_its_own(traced: TracedServer) -> None:
    ask(traced.live.port, post("/v1/completions", prompt=["one", "three"], n=2, max_tokens=3))
    work = traced.work()
    assert names(work) == ["queue", "prefill", "decode"] * 4
    assert [phase.attributes["greenroom.choice"] for phase in work.children] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert work.attributes["gen_ai.request.choice.count"] == 4


def test_only_the_first_choices_have_spans(traced: TracedServer) -> None:
    ask(traced.live.port, post("/v1/completions", prompt="one", n=40, max_tokens=2))
    work = traced.work()
    assert work.attributes["gen_ai.usage.output_tokens"] == 80
    assert {phase.attributes["greenroom.choice"] for phase in work.children} == set(range(32))


def test_the_longest_waits_for_experts_are_spans(traced: TracedServer) -> None:
    """Twenty layers stall in each step, one of them twice as long as the others."""
    model = traced.live.rig.model

    def wait() -> None:
        now = time.monotonic()
        model.stalls = [Stall(layer, now, now, 0.2 if layer == 7 else 0.1, layer, 1024) for layer in range(20)]

    model.before_step = wait
    ask(traced.live.port, post("/v1/completions", prompt="one", max_tokens=5))
    work = traced.work()
    stalls = [(phase.name, stall) for phase in work.children for stall in phase.children]
    assert len(stalls) == 16
    assert {stall.name for _, stall in stalls} == {"expert_stall"}
    longest = [phase for phase, stall in stalls if stall.attributes["greenroom.layer"] == 7]
    assert sorted(longest) == ["decode"] * 4 + ["prefill"]
    [first] = [stall for phase, stall in stalls if phase == "prefill" and stall.attributes["greenroom.layer"] == 7]
    assert first.attributes == {
        "greenroom.layer": 7,
        "greenroom.expert.misses": 7,
        "greenroom.expert.bytes_read": 1024,
        "greenroom.expert.stall_seconds": 0.2,
    }


def test_a_pass_over_a_prompt_has_a_span(codec: Codec) -> None:
    recorder = Recorder()
    rig = Rig(max_batched_tokens=32, passes=PassLimits(256, 32))
    with serving_rig(rig, codec, service=Service("1", tracer=recorder)) as live:
        ask(live.port, post("/v1/completions", prompt="p" * 100, max_tokens=2))
        [prefill_pass] = TracedServer(live, recorder).work().children[1].children
    assert prefill_pass.name == "prefill_pass"
    assert prefill_pass.attributes == {"greenroom.pass.tokens": 100, "greenroom.pass.requests": 1}


def test_an_embedding_has_spans(traced: TracedServer) -> None:
    ask(traced.live.port, post("/v1/embeddings", input=["one", "three"]))
    work = traced.work()
    assert work.name == "embeddings fake"
    assert names(work) == ["queue", "prefill"] * 2
    assert work.attributes["gen_ai.usage.input_tokens"] == 8
    assert work.attributes["greenroom.expert.misses"] == 8
    assert "gen_ai.usage.output_tokens" not in work.attributes


@pytest.mark.parametrize(("stream", "status"), [(False, 504), (True, 200)])
def test_a_failure_is_marked_and_named(traced: TracedServer, stream: bool, status: int) -> None:
    steps = traced.live.rig.model.steps
    traced.live.engine.clock = lambda: time.monotonic() + (1000 if len(steps) > 5 else 0)
    ask(traced.live.port, complete(b"slow", max_tokens=500, timeout=900, stream=stream))
    span, work = traced.span(), traced.work()
    assert span.attributes["http.response.status_code"] == status
    for each in (span, work):
        assert (each.is_failed, each.attributes["error.type"]) == (True, "timeout")
    assert names(work) == ["queue", "prefill", "decode"]
    assert work.children[-1].ended_at == work.ended_at
    assert "greenroom.expert.misses" not in work.children[-1].attributes  # nobody knows


def test_a_client_that_leaves_is_no_failure(traced: TracedServer) -> None:
    with traced.live.connect() as connection:
        connection.sendall(complete(b"endless", max_tokens=5000, stream=True))
        assert connection.recv(100)
    span, work = traced.span(), traced.work()
    for each in (span, work):
        assert (each.is_failed, each.attributes["error.type"]) == (False, "client_disconnected")
    assert "greenroom.expert.misses" not in work.attributes  # nobody knows


def test_a_refused_request_has_one_span(traced: TracedServer) -> None:
    ask(traced.live.port, post("/v1/completions", prompt="secret", model="a\r\n\x1b[31mforged"))
    span = traced.span()
    assert (span.children, span.is_failed) == ([], False)
    assert (span.attributes["http.response.status_code"], span.attributes["error.type"]) == (404, "model_not_found")
    assert "forged" not in str(span)


def test_an_unknown_path_does_not_name_a_span(traced: TracedServer) -> None:
    ask(traced.live.port, post("/v1/no/such/route"))
    span = traced.span()
    assert span.name == "POST"
    assert "http.route" not in span.attributes
    assert span.attributes["url.path"] == "/v1/no/such/route"


def test_a_fault_of_the_server_is_marked(traced: TracedServer) -> None:
    traced.live.engine.submit = None  # type: ignore[method-assign,assignment]
    ask(traced.live.port, complete(b"one"))
    span = traced.span()
    assert (span.is_failed, span.attributes["http.response.status_code"]) == (True, 500)


def test_gets_are_not_reported(traced: TracedServer) -> None:
    ask(traced.live.port, b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    traced.live.wait_until_left()
    assert traced.recorder.spans == []
