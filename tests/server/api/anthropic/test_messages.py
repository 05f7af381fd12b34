"""``/v1/messages`` and ``/v1/messages/count_tokens``, in-process."""

from __future__ import annotations

import re

import pytest

from server.engine.interface import GenerationFailedError, RequestRefusedError
from tests.server.api.named_events import events_of
from tests.server.api.openai.test_experts import GREENROOM

MESSAGES = [{"role": "user", "content": "Tell me a story"}]


@pytest.fixture
def say(post):
    return lambda **body: post("/v1/messages", {"messages": MESSAGES, "max_tokens": 32, **body})


def test_complete_message_has_anthropics_form(say):
    message = say().json()
    assert re.fullmatch("msg_[0-9a-f]{32}", message.pop("id"))
    assert message == {
        "type": "message",
        "role": "assistant",
        "model": "org/tiny",
        "content": [{"type": "text", "text": "Once upon a time"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 5,
            "output_tokens": 5,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "greenroom": GREENROOM,
        },
    }


def test_template_gets_system_and_messages(fake, say):
    say(
        system=[{"type": "text", "text": "Be brief", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": "a"},
            {"role": "user", "content": [{"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "c"},
            {"role": "user", "content": "d"},
        ],
    )
    assert fake.codec.conversations == [
        [
            {"role": "system", "content": "Be brief"},
            {"role": "user", "content": "a\nb"},
            {"role": "assistant", "content": "c"},
            {"role": "user", "content": "d"},
        ]
    ]


def test_sampling_parameters(fake, say):
    say(max_tokens=9, temperature=0.5, top_p=0.25, top_k=7, stop_sequences=["END"], seed=3, stop=["no"])
    sampling = fake.engine.requests[0].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (9, 0.5, 0.25, 7)
    assert (sampling.stop, sampling.seed) == (("END",), 3)


def test_fields_that_ask_for_nothing_are_accepted(say, caplog):
    neutral = {
        "metadata": {"user_id": "ann"},
        "service_tier": "auto",
        "cache_control": {"type": "ephemeral"},
        "tools": [],
        "tool_choice": {"type": "auto"},
        "system": None,
        "unheard_of": 1,
    }
    for _ in range(2):
        assert say(**neutral).status_code == 200
    assert [record.getMessage() for record in caplog.records if "unknown field" in record.getMessage()] == [
        "Ignoring the unknown field 'unheard_of' of a request body."
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_tokens", None, "'max_tokens' is required."),
        ("max_tokens", 0, "'max_tokens': input should be greater than or equal to 1, got 0."),
        ("messages", None, "'messages' is required."),
        ("messages", [], "'messages' must not be empty."),
        ("messages", [{"role": "tool", "content": "a"}], "'messages[0].role'"),
        ("messages", [{"role": "user", "content": [{"type": "video"}]}], "'messages[0].content[0]' must be a block"),
        (
            "messages",
            [*MESSAGES, {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]}],
            "'messages' must not end with a 'tool_use'",
        ),
        ("system", [{"type": "image"}], "'system[0]' must be a block of 'text'"),
        ("system", 1, "'system' must be a string of valid Unicode"),
        ("temperature", 3, "'temperature'"),
        ("top_p", -0.5, "'top_p'"),
        ("top_k", -2, "'top_k'"),
        ("stop_sequences", [""], "'stop_sequences' must hold valid Unicode strings only"),
        ("stop_sequences", ["a"] * 17, "'stop_sequences' must be a string or a list of at most 16 strings"),
        (
            "tools",
            [{"type": "web_search_20250305", "name": "web_search"}],
            "'tools' can't hold the type 'web_search_20250305'",
        ),
        ("tools", [{"name": "weather"}], "'tools[0].input_schema' is required."),
        ("tool_choice", {"type": "tool"}, "'tool_choice' must have the 'name' of the tool."),
        ("tool_choice", {"type": "some"}, "'tool_choice.type'"),
        ("tool_choice", "auto", "'tool_choice'"),
        ("stream", 1, "'stream'"),
        ("thread", {"type": "create"}, "'thread' can't be used, because this server stores no conversations"),
        ("container", "container_1", "'container' can't be used, because this server runs no tools itself"),
        ("mcp_servers", [{"type": "url"}], "'mcp_servers' can't be used, because this server runs no tools itself"),
        (
            "compaction",
            {"type": "compact"},
            "'compaction' can't be used, because this server compacts no conversations",
        ),
    ],
)
def test_bad_values_are_named(fake, say, field, value, message):
    response = say(**{field: value})
    assert response.status_code == 400
    error = response.json()
    assert error["type"] == "error"
    assert error["error"]["type"] == "invalid_request_error"
    assert message in error["error"]["message"]
    assert error["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]
    assert not fake.engine.streams


def test_max_tokens_is_cut_to_what_fits_but_a_long_prompt_is_refused(fake, say):
    """Clients must send a limit, and often send a large one."""
    fake.engine.texts = ("a",) * 100
    message = say(max_tokens=32_000).json()
    assert (message["stop_reason"], message["usage"]["output_tokens"]) == ("model_context_window_exceeded", 59)
    response = say(messages=[{"role": "user", "content": "a " * 64}])
    assert response.status_code == 400
    assert "maximum context length is 64 tokens" in response.json()["error"]["message"]


def test_template_that_refuses_is_a_bad_request(fake, say):
    fake.codec.refusal = RequestRefusedError("the model has no chat template", "messages")
    response = say()
    assert (response.status_code, response.json()["error"]["message"]) == (400, "the model has no chat template")


def test_stream_and_complete_reply_are_equal(say):
    events = events_of(say(stream=True))
    text = "".join(event["delta"]["text"] for event in events if event["type"] == "content_block_delta")
    whole = say().json()
    assert [{"type": "text", "text": text}] == whole["content"]
    assert events[-2]["usage"] == whole["usage"]


def test_failure_after_the_first_token_is_an_error_event(fake, say):
    fake.engine.failure = GenerationFailedError("an expert could not be read")
    response = say(stream=True)
    assert response.status_code == 200
    assert events_of(response)[-1] == {
        "type": "error",
        "error": {"type": "api_error", "message": "an expert could not be read"},
        "request_id": response.headers["request-id"],
    }
    assert all(stream.is_cancelled for stream in fake.engine.streams)


def test_counting_tokens_runs_nothing(fake, post):
    body = {"messages": MESSAGES, "system": "Be brief", "model": "org/tiny", "tools": [], "top_k": 5}
    assert post("/v1/messages/count_tokens", body).json() == {"input_tokens": 7}
    assert not fake.engine.streams


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({}, 400, "invalid_request_error"),
        ({"messages": MESSAGES, "model": "other"}, 404, "not_found_error"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, 400, "invalid_request_error"),
    ],
)
def test_prompts_that_cannot_be_counted(post, body, status, kind):
    response = post("/v1/messages/count_tokens", body)
    assert (response.status_code, response.json()["error"]["type"]) == (status, kind)
