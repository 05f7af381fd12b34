"""Spans of several choices that shared a step."""

from __future__ import annotations

import asyncio

from server.api.core.choice.auto_choice import AutoChoice
from server.api.core.requests.generation import Generation
from server.api.middleware.finished_request import FinishedRequest
from server.api.middleware.request_spans import request_span
from server.engine.interface import ExpertUsage, GenerationRequest, SamplingParams, Stall, Timeline, TokenStream

PARAMS = SamplingParams(max_tokens=5)


def ended(*timelines: Timeline) -> FinishedRequest:
    """Return a finished request with a choice for each timeline."""
    loop = asyncio.new_event_loop()
    loop.close()
    streams = [TokenStream(GenerationRequest(str(n), (1,), PARAMS), loop, each) for n, each in enumerate(timelines)]
    work = Generation("cmpl-1", "tiny", 1, streams)
    return FinishedRequest("id", "POST", "/v1/completions", "/v1/completions", 0.0, 9.0, 200, False, work, None)


def test_a_stall_that_choices_share_goes_to_the_first() -> None:
    common = [Stall(layer, 3.0, 4.0, 1.0, 2, 1024) for layer in range(3)]
    own = Stall(7, 5.0, 6.0, 0.5, 1, 512)
    timelines = [
        Timeline(1.0, 2.0, 4.0, stalls=common),
        Timeline(1.0, 2.0, 4.0, stalls=[*common, own]),
    ]
    _, work = request_span(ended(*timelines)).children
    told = [
        (phase.attributes["greenroom.choice"], phase.name, stall.attributes["greenroom.layer"])
        for phase in work.children
        for stall in phase.children
    ]
    assert told == [(0, "prefill", 0), (0, "prefill", 1), (0, "prefill", 2), (1, "decode", 7)]


def test_a_choice_that_never_began_was_in_the_queue_all_the_time() -> None:
    _, work = request_span(ended(Timeline(1.0), Timeline(1.0, 2.0, num_preemptions=3))).children
    assert [(phase.name, phase.started_at, phase.ended_at) for phase in work.children] == [
        ("queue", 1.0, 9.0),
        ("queue", 1.0, 2.0),
        ("prefill", 2.0, 9.0),
    ]
    assert work.children[-1].attributes == {"greenroom.preemptions": 3, "greenroom.choice": 1}


def test_only_the_32_longest_stalls_have_spans() -> None:
    stalls = [Stall(layer, 3.0, 4.0, layer / 10, 1, 1) for layer in range(40)]
    _, work = request_span(ended(*(Timeline(1.0, 2.0, 5.0, stalls=stalls[n::4]) for n in range(4)))).children
    layers = {stall.attributes["greenroom.layer"] for phase in work.children for stall in phase.children}
    assert layers == set(range(8, 40))


def test_a_routed_request_has_a_span_for_the_choice_and_its_outcome() -> None:
    finished = ended(Timeline(3.0, 3.5, 4.0))
    routing = AutoChoice(
        "embedding", "law", {"law": 0.75, "base": 0.25}, "It is near.", 12, 1.0, 2.5, ExpertUsage(1, 1, 9)
    )
    assert isinstance(finished.work, Generation)
    finished.work.auto_choice = routing
    preparation, work = request_span(finished).children
    [route] = preparation.children
    assert (route.name, route.started_at, route.ended_at) == ("route", 1.0, 2.5)
    assert route.attributes["greenroom.routing.prompt_tokens"] == 12
    assert route.attributes["greenroom.expert.bytes_read"] == 9
    named = {name: work.attributes[f"greenroom.routing.{name}"] for name in ("method", "model", "score", "reason")}
    assert named == {"method": "embedding", "model": "law", "score": 0.75, "reason": "It is near."}
    assert work.attributes["gen_ai.request.model"] == "auto"
