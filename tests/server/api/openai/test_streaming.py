"""Replies as server-sent events."""

import json

import pytest

from server.api.core.replies.server_sent_events import sse
from server.engine.interface import GenerationFailedError


def events_of(response):
    """Return the JSON of each event; the last must be ``[DONE]``."""
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: ") for event in events[:-1])
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


@pytest.mark.parametrize("fixture", ["complete", "chat"])
def test_headers_turn_off_buffering_in_proxies(request, fixture):
    response = request.getfixturevalue(fixture)(stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert "x-request-id" in response.headers


def test_completion_chunks(complete):
    """An event without text has no chunk; the last chunk has the finish reason."""
    chunks = events_of(complete(stream=True))
    assert [chunk["choices"] for chunk in chunks] == [
        [{"index": 0, "text": text, "logprobs": None, "finish_reason": reason}]
        for text, reason in (("Once", None), (" upon", None), (" a", None), (" time", "stop"))
    ]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}


def test_chat_chunks(chat):
    """The role comes first, the finish reason last and alone."""
    chunks = events_of(chat(stream=True))
    assert [(chunk["choices"][0]["delta"], chunk["choices"][0]["finish_reason"]) for chunk in chunks] == [
        ({"role": "assistant", "content": ""}, None),
        ({"content": "Once"}, None),
        ({"content": " upon"}, None),
        ({"content": " a"}, None),
        ({"content": " time"}, None),
        ({}, "stop"),
    ]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


@pytest.mark.parametrize("fixture", ["complete", "chat"])
def test_text_of_any_characters_is_encoded_as_json_encodes_it(fake, request, fixture):
    fake.engine.texts = ("first", '"quoted" \\', "\u2028\0\x7f", "\0text\0", "\U0001f642é")
    response = request.getfixturevalue(fixture)(stream=True, n=2, max_tokens=6)
    chunks = events_of(response)
    texts = [
        choice.get("text") or choice.get("delta", {}).get("content") for each in chunks for choice in each["choices"]
    ]
    assert [text for text in texts if text] == [*fake.engine.texts] * 2
    assert response.content == b"".join(map(sse, chunks)) + b"data: [DONE]\n\n"


@pytest.mark.parametrize("fixture", ["complete", "chat"])
def test_chunks_share_id_created_and_model(request, fixture):
    chunks = events_of(request.getfixturevalue(fixture)(stream=True, n=2))
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1


@pytest.mark.parametrize("fixture", ["complete", "chat"])
def test_usage_is_the_last_chunk(request, fixture):
    chunks = events_of(request.getfixturevalue(fixture)(stream=True, n=2, stream_options={"include_usage": True}))
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 10
    assert {chunk["usage"] for chunk in chunks[:-1]} == {None}


@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": False}}, {"stream_options": None}])
def test_no_usage_unless_asked_for(complete, options):
    assert all("usage" not in chunk for chunk in events_of(complete(stream=True, **options)))


def test_every_choice_is_complete(complete):
    texts = {0: "", 1: "", 2: ""}
    for chunk in events_of(complete(stream=True, n=3)):
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert set(texts.values()) == {"Once upon a time"}


def test_failure_after_the_first_token_is_the_last_chunk(fake, complete):
    fake.engine.failure = GenerationFailedError("an expert could not be read")
    response = complete(stream=True, n=2, stream_options={"include_usage": True})
    assert response.status_code == 200
    events = events_of(response)
    assert events[-1] == {
        "error": {"message": "an expert could not be read", "type": "server_error", "param": None, "code": None}
    }
    assert all(stream.is_cancelled for stream in fake.engine.streams)


def test_events_are_ascii():
    assert sse({"text": "é\u2028"}) == b'data: {"text":"\\u00e9\\u2028"}\n\n'
