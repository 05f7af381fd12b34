"""Input items, translated to messages of a chat."""

from __future__ import annotations

import pytest

from server.api.core.bodies.conversation import Conversation
from server.api.core.errors.api_errors import InvalidRequestError
from server.api.openai.responses.input_items import add_input


def messages_of(items):
    conversation = Conversation()
    add_input(conversation, items)
    return conversation.messages


def text(value):
    return {"type": "text", "text": value}


def test_a_text_input_is_a_user_message():
    assert messages_of("Hello") == [{"role": "user", "content": [text("Hello")]}]


def test_messages_with_and_without_a_type():
    """The role developer becomes system, and successive items of one role are one message."""
    image = {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "low"}
    items = [
        {"role": "developer", "content": "Be brief"},
        {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "Be kind"}]},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Yes?", "annotations": []}], "id": "msg_1"},
        {"role": "user", "content": [image]},
    ]
    assert messages_of(items) == [
        {"role": "system", "content": [text("Be brief"), text("Be kind")]},
        {"role": "user", "content": [text("Hello")]},
        {"role": "assistant", "content": [text("Yes?")]},
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}],
        },
    ]


def test_reasoning_text_and_calls_of_the_assistant_are_one_message():
    items = [
        {"role": "user", "content": "Weather?"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}]},
        {"role": "assistant", "content": "Let me see"},
        {"type": "function_call", "call_id": "call_a", "name": "weather", "arguments": '{"city": "Paris"}'},
        {"type": "function_call", "call_id": "call_b", "name": "time", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_a", "output": "sunny"},
        {"type": "function_call_output", "call_id": "call_b", "output": [{"type": "input_text", "text": "noon"}]},
    ]
    assert messages_of(items)[1:] == [
        {
            "role": "assistant",
            "content": [text("Let me see")],
            "reasoning_content": "Hm",
            "tool_calls": [
                {
                    "id": "call_a",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "Paris"}'},
                },
                {"id": "call_b", "type": "function", "function": {"name": "time", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "call_a", "content": [text("sunny")]},
        {"role": "tool", "tool_call_id": "call_b", "content": [text("noon")]},
    ]


@pytest.mark.parametrize(
    ("reasoning", "thought"),
    [
        ({"summary": [{"type": "summary_text", "text": "Hm"}]}, "Hm"),
        ({"summary": [], "content": None, "encrypted_content": "gAAA"}, None),
    ],
)
def test_reasoning_comes_in_several_forms(reasoning, thought):
    """Some clients send back only a summary; encrypted reasoning is ignored."""
    messages = messages_of([{"type": "reasoning", "id": "rs_1", **reasoning}, {"role": "user", "content": "Hello"}])
    assert [message.get("reasoning_content") for message in messages[:-1]] == ([thought] if thought else [])


@pytest.mark.parametrize(
    ("item", "param", "message"),
    [
        ("Hello", "input[1]", "must be an object"),
        ({"type": "computer_call"}, "input[1].type", "must be one of 'message', 'function_call'"),
        ({"type": ["message"]}, "input[1].type", "must be one of"),
        ({"type": "item_reference", "id": "msg_1"}, "input[1]", "refers to a stored item, but this server stores none"),
        ({"content": "Hello"}, "input[1].role", "is required"),
        ({"role": "tool", "content": "Hello"}, "input[1].role", "should be 'user', 'assistant', 'system'"),
        ({"role": "user"}, "input[1].content", "is required"),
        ({"role": "user", "content": 1}, "input[1].content", "must be a string or a list of parts"),
        ({"role": "user", "content": "\ud800"}, "input[1].content", "must be valid Unicode"),
        ({"role": "user", "content": ["Hello"]}, "input[1].content", "must hold parts of the form"),
        ({"role": "user", "content": [{"type": "input_file"}]}, "input[1].content", "got 'input_file'"),
        ({"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}, "input[1].content", "stores no files"),
        (
            {"role": "user", "content": [{"type": "input_image", "image_url": "https://a/b.png"}]},
            "input[1].content",
            "this server fetches nothing",
        ),
        ({"type": "function_call", "call_id": "a", "name": "b"}, "input[1].arguments", "is required"),
        ({"type": "function_call_output", "output": "b"}, "input[1].call_id", "is required"),
        (
            {"type": "function_call_output", "call_id": "a", "output": "b"},
            "input[1].call_id",
            "must be the 'call_id' of",
        ),
    ],
)
def test_bad_items_are_named(item, param, message):
    with pytest.raises(InvalidRequestError, match=message) as error:
        messages_of([{"role": "user", "content": "Hello"}, item])
    assert error.value.param == param
