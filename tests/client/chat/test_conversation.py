"""Messages and parameters of a conversation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from client.chat.conversation import SETTABLE, Conversation, parse_value
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


def test_values_are_json_or_text() -> None:
    assert [parse_value(text) for text in ("0.7", "3", "true", '["a"]', "word")] == [0.7, 3, True, ["a"], "word"]


def test_settable_parameters_are_chat_options() -> None:
    assert set(SETTABLE) <= set(ChatOptions.__annotations__)
