"""Messages and parameters of a conversation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from client.chat.conversation import Conversation, ConversationError
from client.chat.parameters import KINDS, ParameterError, parse_parameter
from client.options import ChatOptions

ANSWER = {"role": "assistant", "content": "Hello é"}


def test_messages_are_system_prompt_history_and_question() -> None:
    conversation = Conversation("tiny")
    assert conversation.messages_with("Hi") == [{"role": "user", "content": "Hi"}]
    conversation.system = "Be kind."
    conversation.add("Hi", ANSWER)
    assert [message["content"] for message in conversation.messages_with("Why?")] == [
        "Be kind.",
        "Hi",
        "Hello é",
        "Why?",
    ]


def test_saving_writes_a_request_and_never_overwrites_a_file(tmp_path: Path) -> None:
    conversation = Conversation("tiny", options={"temperature": 0})
    conversation.add("Hi", ANSWER)
    conversation.save(tmp_path / "talk.json")
    assert json.loads((tmp_path / "talk.json").read_text("utf-8")) == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hi"}, ANSWER],
        "temperature": 0,
    }
    with pytest.raises(FileExistsError):
        conversation.save(tmp_path / "talk.json")


def test_routing_goes_to_the_model_auto_only() -> None:
    conversation = Conversation("auto", options={"seed": 3, "routing": {"method": "arrow"}})
    assert conversation.request_options == {"seed": 3, "routing": {"method": "arrow"}}
    conversation.model = "tiny"
    assert conversation.request_options == {"seed": 3}


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    conversation = Conversation("tiny", "Be kind.", options={"temperature": 0, "stop": ["\n"]})
    conversation.add("Hi", ANSWER)
    conversation.save(tmp_path / "talk.json")
    assert Conversation.load(tmp_path / "talk.json") == conversation


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ("[]", "it has no messages"),
        ('{"messages": 3}', "it has no messages"),
        ('{"messages": [{"role": "user", "content": "Hi"}, {"content": "Hi"}]}', "message 2 has no role"),
        ('{"messages": ["Hi"]}', "message 1 has no role"),
        ('{"model": 3, "messages": []}', "its model or system prompt is no text"),
    ],
)
def test_a_file_without_a_conversation_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "talk.json").write_text(text)
    with pytest.raises(ConversationError, match=reason):
        Conversation.load(tmp_path / "talk.json")


def test_parameters_of_a_file_are_checked(tmp_path: Path) -> None:
    (tmp_path / "talk.json").write_text('{"messages": [], "temperature": "hot"}')
    with pytest.raises(ParameterError, match=r"temperature must be a number, such as 0\.7, not hot"):
        Conversation.load(tmp_path / "talk.json")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", "0.7", 0.7),
        ("temperature", "1", 1),
        ("max_tokens", "3", 3),
        ("ignore_eos", "true", True),
        ("stop", '["a"]', ["a"]),
        ("stop", "5", "5"),
        ("reasoning_effort", "low", "low"),
        ("routing", "arrow", {"method": "arrow"}),
        ("routing", '{"top_k": 2}', {"top_k": 2}),
    ],
)
def test_values_are_of_the_parameters_kind(name: str, text: str, value: object) -> None:
    assert parse_parameter(name, text) == value


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("temperature", "hot", "a number"),
        ("temperature", "NaN", "a number"),
        ("top_p", "true", "a number"),
        ("seed", "1.5", "a whole number"),
        ("max_tokens", "[3]", "a whole number"),
        ("ignore_eos", "1", "true or false"),
        ("routing", "3", "a method, such as arrow"),
    ],
)
def test_values_of_another_kind_are_refused(name: str, text: str, kind: str) -> None:
    with pytest.raises(ParameterError, match=f"^{name} must be {kind}.*, not "):
        parse_parameter(name, text)


def test_parameters_are_chat_options() -> None:
    assert set(KINDS) <= set(ChatOptions.__annotations__)
