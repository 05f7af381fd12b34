"""``/v1/chat/completions``, without streams."""

import re

import pytest

from server.engine.interface import RequestRefusedError
from tests.server.api.openai.test_experts import GREENROOM


def test_complete_reply_has_openais_form(chat):
    reply = chat().json()
    assert re.fullmatch("chatcmpl-[0-9a-f]{32}", reply.pop("id"))
    assert isinstance(reply.pop("created"), int)
    message = {"role": "assistant", "content": "Once upon a time", "refusal": None}
    assert reply == {
        "object": "chat.completion",
        "model": "org/tiny",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 5,
            "completion_tokens": 5,
            "total_tokens": 10,
            "prompt_tokens_details": {"cached_tokens": 0},
            "greenroom": GREENROOM,
        },
    }


def test_template_gets_roles_and_texts(fake, chat):
    """Text parts are joined, the role developer becomes system, and other fields are dropped."""
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    chat(
        messages=[
            {"role": "developer", "content": "Be brief", "name": "ann"},
            {"role": "user", "content": parts},
            {"role": "assistant", "content": "three", "refusal": None, "tool_calls": None},
        ]
    )
    assert fake.codec.conversations == [
        [
            {"role": "system", "content": "Be brief"},
            {"role": "user", "content": "one\ntwo"},
            {"role": "assistant", "content": "three"},
        ]
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("hello", "messages"),
        (["hello"], "messages[0]"),
        ([{"content": "a"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": "\ud800"}], "messages[0].content"),
        ([{"role": "user", "content": "a"}, {"role": "critic", "content": "b"}], "messages[1].role"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content"),
    ],
)
def test_bad_messages_are_named(fake, chat, messages, param):
    response = chat(messages=messages)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert not fake.engine.streams


@pytest.mark.parametrize(
    "message",
    [
        {"content": [{"type": "refusal", "refusal": "No."}]},
        {"content": None, "refusal": "No."},
        {"content": "No.", "refusal": None},
    ],
)
def test_a_refusal_of_the_assistant_is_its_text(fake, chat, message):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", **message}, {"role": "user", "content": "b"}]
    assert chat(messages=messages).status_code == 200
    assert fake.codec.conversations[0][1] == {"role": "assistant", "content": "No."}


@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    [
        ({"modalities": ["text", "audio"]}, "modalities", "asks for audio, and this server writes text only"),
        ({"audio": {"voice": "ash", "format": "wav"}}, "audio", "asks for audio, and this server writes text only"),
        ({"web_search_options": {}}, "web_search_options", "can't be used, because this server searches nothing"),
    ],
)
def test_what_the_server_does_not_have_is_refused_by_name(fake, chat, fields, param, reason):
    error = chat(**fields).json()["error"]
    assert (error["param"], error["message"].startswith(f"'{param}' {reason}")) == (param, True)
    assert not fake.engine.streams


def test_text_is_a_modality(chat):
    assert chat(modalities=["text"]).status_code == 200


def test_template_that_refuses_is_a_bad_request(fake, chat):
    fake.codec.refusal = RequestRefusedError("the model has no chat template", "messages")
    response = chat()
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "the model has no chat template"


def test_choices_differ_in_index(chat):
    assert [choice["index"] for choice in chat(n=3).json()["choices"]] == [0, 1, 2]
