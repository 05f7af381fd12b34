"""Content blocks, translated to messages of a chat."""

from __future__ import annotations

import pytest

from server.api.anthropic.blocks import ASSISTANT, SYSTEM, USER, add_content
from server.api.core.bodies.conversation import Conversation
from server.api.core.errors.api_errors import InvalidRequestError

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
SHOWN = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


def text(value):
    return {"type": "text", "text": value}


def messages_of(*said):
    conversation = Conversation()
    kinds = {"user": USER, "assistant": ASSISTANT, "system": SYSTEM}
    for role, content in said:
        add_content(conversation, role, content, "here", kinds[role])
    return conversation.messages


def test_texts_and_blocks_of_one_role_are_one_message():
    assert messages_of(("user", "a"), ("user", [text("b") | {"cache_control": {"type": "ephemeral"}}, IMAGE])) == [
        {"role": "user", "content": [text("a"), text("b"), SHOWN]}
    ]


def test_reasoning_text_and_calls_of_the_assistant_are_one_message():
    blocks = [
        {"type": "thinking", "thinking": "Hm", "signature": "s"},
        {"type": "redacted_thinking", "data": "x"},
        text("Let me see"),
        {"type": "tool_use", "id": "toolu_a", "name": "weather", "input": {"city": "Paris"}},
    ]
    call = {"id": "toolu_a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    assert messages_of(("assistant", blocks)) == [
        {"role": "assistant", "content": [text("Let me see")], "reasoning_content": "Hm", "tool_calls": [call]}
    ]


def use(call_id):
    return {"type": "tool_use", "id": call_id, "name": "look", "input": {}}


def document(**source):
    return {
        "type": "document",
        "source": source,
        "title": "Rooms",
        "context": "Of 2024",
        "citations": {"enabled": True},
    }


def test_documents_are_texts_under_their_titles():
    plain = document(type="text", media_type="text/plain", data="Green.")
    blocks = [plain, document(type="content", content="Red."), document(type="content", content=[text("Blue."), IMAGE])]
    head = [text("Rooms"), text("Of 2024")]
    assert messages_of(("user", blocks)) == [
        {"role": "user", "content": [*head, text("Green."), *head, text("Red."), *head, text("Blue."), SHOWN]}
    ]


def test_a_tool_result_may_be_a_document():
    result = {"type": "tool_result", "tool_use_id": "a", "content": [document(type="content", content="Green.")]}
    assert messages_of(("assistant", [use("a")]), ("user", [result]))[-1] == {
        "role": "tool",
        "tool_call_id": "a",
        "content": [text("Rooms"), text("Of 2024"), text("Green.")],
    }


def test_tool_results_precede_the_users_text():
    """They also precede their images."""
    blocks = [
        {"type": "tool_result", "tool_use_id": "toolu_a", "content": "sunny"},
        {"type": "tool_result", "tool_use_id": "toolu_b", "content": [text("a"), IMAGE], "is_error": True},
        {"type": "tool_result", "tool_use_id": "toolu_c"},
        text("Thanks"),
    ]
    called = [use("toolu_a"), use("toolu_b"), use("toolu_c")]
    assert messages_of(("assistant", called), ("user", blocks))[1:] == [
        {"role": "tool", "tool_call_id": "toolu_a", "content": [text("sunny")]},
        {"role": "tool", "tool_call_id": "toolu_b", "content": [text("a")]},
        {"role": "tool", "tool_call_id": "toolu_c", "content": [text("")]},
        {"role": "user", "content": [SHOWN, text("Thanks")]},
    ]


@pytest.mark.parametrize(
    ("role", "content", "param", "message"),
    [
        ("user", 1, "here", "must be a string of valid Unicode or a list of blocks, got 1"),
        ("user", "\ud800", "here", "must be a string of valid Unicode"),
        ("user", [{"type": "text", "text": "\ud800"}], "here[0].text", "must be valid Unicode"),
        ("user", ["a"], "here[0]", "must be a block of 'text', 'image', 'document', 'tool_result', got 'a'"),
        ("user", [{"type": "document"}], "here[0].source", "is required"),
        (
            "user",
            [document(type="base64", media_type="application/pdf", data="AA==")],
            "here[0].source",
            'must have the type "text" or "content", because this server reads no PDF',
        ),
        ("user", [document(type="url", url="a")], "here[0].source", "fetches nothing and stores no files; got 'url'"),
        (
            "user",
            [document(type="text", media_type="text/html", data="a")],
            "here[0].source.text.media_type",
            "text/pl",
        ),
        (
            "user",
            [document(type="content", content=[use("a")])],
            "here[0].source.content[0]",
            "must be a block of 'text'",
        ),
        ("assistant", [document(type="text", media_type="text/plain", data="a")], "here[0]", "got 'document'"),
        ("user", [{"type": ["text"]}], "here[0]", "must be a block of"),
        ("user", [{"type": "tool_use"}], "here[0]", "got 'tool_use'"),
        ("user", [{"type": "text"}], "here[0].text", "is required"),
        (
            "user",
            [IMAGE | {"source": {"type": "url", "url": "a"}}],
            "here[0].source.type",
            "this server fetches nothing",
        ),
        ("user", [{"type": "tool_result"}], "here[0].tool_use_id", "is required"),
        (
            "user",
            [{"type": "tool_result", "tool_use_id": "a"}],
            "here[0].tool_use_id",
            "must be the 'id' of a 'tool_use'",
        ),
        ("assistant", [IMAGE], "here[0]", "got 'image'"),
        ("assistant", [{"type": "tool_use", "id": "a", "name": "b", "input": "{}"}], "here[0].input", "dictionary"),
        ("system", [IMAGE], "here[0]", "must be a block of 'text', got 'image'"),
    ],
)
def test_bad_blocks_are_named(role, content, param, message):
    with pytest.raises(InvalidRequestError, match=message) as error:
        messages_of((role, content))
    assert error.value.param == param


def test_bad_blocks_of_a_result_are_named():
    result = {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "video"}]}
    with pytest.raises(
        InvalidRequestError, match="must be a block of 'text', 'image', 'document', got 'video'"
    ) as error:
        messages_of(("assistant", [use("a")]), ("user", [result]))
    assert error.value.param == "here[0].content[0]"
