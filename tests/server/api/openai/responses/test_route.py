"""``/v1/responses``, in-process."""

from __future__ import annotations

import asyncio
import re

import pytest

from server.api.core.json_text.encoding import encode_long
from server.engine.interface import GenerationFailedError, QueueFullError, RequestRefusedError
from tests.server.api.named_events import events_of
from tests.server.api.openai.test_experts import GREENROOM


@pytest.fixture
def respond(post):
    return lambda **body: post("/v1/responses", {"input": "Tell me a story", **body})


def test_complete_response_has_openais_form(respond):
    response = respond().json()
    assert re.fullmatch("resp_[0-9a-f]{32}", response.pop("id"))
    assert isinstance(response.pop("created_at"), int)
    assert isinstance(response.pop("completed_at"), int)
    (message,) = response.pop("output")
    assert re.fullmatch("msg_[0-9a-f]{32}", message.pop("id"))
    assert message == {
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "Once upon a time", "annotations": [], "logprobs": []}],
    }
    assert response == {
        "object": "response",
        "status": "completed",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "max_tool_calls": None,
        "metadata": {},
        "model": "org/tiny",
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": False,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": {
            "input_tokens": 5,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 5,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 10,
            "greenroom": GREENROOM,
        },
        "user": None,
    }


def test_response_repeats_what_was_asked(fake, respond):
    asked = {
        "instructions": "Be brief",
        "max_output_tokens": 3,
        "metadata": {"case": "1"},
        "temperature": 0.5,
        "top_p": 0.25,
        "user": "ann",
    }
    response = respond(**asked).json()
    assert {name: response[name] for name in asked} == asked
    sampling = fake.engine.requests[0].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (3, 0.5, 0.25)


def test_a_response_as_long_as_fits_repeats_that_and_its_greedy_top_p(fake, respond):
    asked = {"max_output_tokens": -1, "top_p": 0.0, "temperature": 0.5}
    response = respond(**asked).json()
    assert {name: response[name] for name in asked} == asked
    assert fake.engine.requests[0].sampling.max_tokens == 64 - 5


def test_template_gets_instructions_and_input(fake, respond):
    respond(
        instructions="Be brief", input=[{"role": "developer", "content": "Be kind"}, {"role": "user", "content": "a"}]
    )
    assert fake.codec.conversations == [
        [{"role": "system", "content": "Be brief\nBe kind"}, {"role": "user", "content": "a"}]
    ]


def test_sampling_parameters_of_chats_are_accepted(fake, respond):
    respond(top_k=7, seed=3, stop=["END"], min_p=0.5)
    sampling = fake.engine.requests[0].sampling
    assert (sampling.top_k, sampling.seed, sampling.stop, sampling.min_p) == (7, 3, ("END",), 0.5)


def test_fields_that_ask_for_nothing_are_accepted(fake, respond):
    neutral = {
        "store": True,
        "background": False,
        "previous_response_id": None,
        "conversation": None,
        "truncation": "auto",
        "include": ["reasoning.encrypted_content"],
        "service_tier": "auto",
        "prompt_cache_key": "a",
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "unheard_of": 1,
    }
    response = respond(**neutral)
    assert response.status_code == 200
    assert response.json()["store"] is False


def test_unknown_fields_are_logged_once(respond, caplog):
    for _ in range(2):
        respond(unheard_of=1, top_k=5)
    assert [record.getMessage() for record in caplog.records if "unknown field" in record.getMessage()] == [
        "Ignoring the unknown field 'unheard_of' of a request body."
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("input", None, "input"),
        ("input", [], "input"),
        ("input", 1, "input"),
        ("input", "\ud800", "input"),
        ("input", [{"type": "computer_call"}], "input[0].type"),
        ("previous_response_id", "resp_1", "previous_response_id"),
        ("conversation", "conv_1", "conversation"),
        ("background", True, "background"),
        ("prompt", {"id": "pmpt_1"}, "prompt"),
        ("max_output_tokens", 0, "max_output_tokens"),
        ("max_output_tokens", 60, "input"),
        ("temperature", 3, "temperature"),
        ("top_p", -0.5, "top_p"),
        ("top_k", -2, "top_k"),
        ("top_logprobs", 21, "top_logprobs"),
        ("include", ["secrets"], "include[0]"),
        ("truncation", "some", "truncation"),
        ("metadata", {"a": 1}, "metadata"),
        ("metadata", {str(number): "" for number in range(17)}, "metadata"),
        ("tools", ["web_search"], "tools[0]"),
        ("tools", [{"name": "look"}], "tools[0].type"),
        ("tools", [{"type": "a\r\nb"}], "tools[0].type"),
        ("tools", [{"type": ["function"]}], "tools[0].type"),
        ("tools", [{"type": "web_search"}] * 129, "tools"),
        ("tools", [{"type": "namespace", "name": "files"}], "tools[0].tools"),
        ("tools", [{"type": "namespace", "name": "files", "tools": [{"type": "function"}]}], "tools[0].tools[0].name"),
        (
            "tools",
            [{"type": "namespace", "name": "a" * 64, "tools": [{"type": "function", "name": "b" * 64}]}],
            "tools[0].tools",
        ),
        ("tools", [{"type": "function"}], "tools[0].name"),
        ("tool_choice", {"type": "web_search"}, "tool_choice"),
        ("tool_choice", "any", "tool_choice"),
        ("text", {"format": {"type": "xml"}}, "text.format.type"),
        ("stream", 1, "stream"),
        ("stop", [""], "stop"),
    ],
)
def test_bad_values_are_named(fake, respond, field, value, param):
    response = respond(**{field: value})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert not fake.engine.streams


def test_an_image_that_is_not_base64_is_named_as_input(respond):
    content = [{"type": "input_image", "image_url": "data:image/png;base64,?"}]
    error = respond(input=[{"role": "user", "content": content}]).json()["error"]
    assert error["param"] == "input"
    assert error["message"].startswith("An image of 'input' is not valid base64")


def test_template_that_refuses_names_the_input(fake, respond):
    fake.codec.refusal = RequestRefusedError("the model has no chat template", "messages")
    response = respond()
    assert (response.status_code, response.json()["error"]["param"]) == (400, "input")


def test_a_model_that_is_not_served(respond):
    response = respond(model="other")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


def test_a_full_queue(fake, respond):
    fake.engine.refusals = {0: QueueFullError("full")}
    response = respond(stream=True)
    assert response.status_code == 429
    assert response.headers["retry-after"]


def test_logprobs_accompany_the_text(respond):
    include = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    (part,) = respond(**include).json()["output"][0]["content"]
    assert [each["logprob"] for each in part["logprobs"]] == [-0.5, -1.0, -1.5, -2.0, -2.5]
    assert part["logprobs"][0] == {
        "token": "Once",
        "logprob": -0.5,
        "bytes": [79, 110, 99, 101],
        "top_logprobs": [{"token": "Once", "logprob": -0.5, "bytes": [79, 110, 99, 101]}],
    }
    deltas = [event for event in events_of(respond(stream=True, **include)) if event["type"].endswith("text.delta")]
    assert [each for event in deltas for each in event["logprobs"]] == part["logprobs"]
    assert [len(event["logprobs"]) for event in deltas] == [1, 1, 2, 1]


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_with_logprobs_is_encoded_off_the_event_loop(respond, monkeypatch, stream):
    loops = []

    def encode(value):
        loops.append(asyncio._get_running_loop())
        return encode_long(value)

    monkeypatch.setattr("server.api.core.replies.event_encoder.encode_long", encode)
    respond(stream=stream, include=["message.output_text.logprobs"])
    assert set(loops) == {None}


def test_top_logprobs_alone_return_no_logprobs(respond):
    (part,) = respond(top_logprobs=2).json()["output"][0]["content"]
    assert part["logprobs"] == []


def test_stream_and_complete_reply_are_equal(respond):
    whole, streamed = respond(seed=1).json(), events_of(respond(seed=1, stream=True))[-1]["response"]
    for response in (whole, streamed):
        del response["id"], response["created_at"], response["completed_at"], response["output"][0]["id"]
    assert streamed == whole


def test_failure_after_the_first_token_is_the_last_event(fake, respond):
    fake.engine.failure = GenerationFailedError("an expert could not be read")
    response = respond(stream=True)
    assert response.status_code == 200
    last = events_of(response)[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["error"] == {"code": "server_error", "message": "an expert could not be read"}
    assert all(stream.is_cancelled for stream in fake.engine.streams)


def test_failure_of_a_complete_response_is_an_error(fake, respond):
    fake.engine.failure = GenerationFailedError("an expert could not be read")
    response = respond()
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "an expert could not be read"
