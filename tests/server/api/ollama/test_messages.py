"""Messages in Ollama's form: the tool calls that results answer."""

from __future__ import annotations

import pytest

from server.api.core.errors.api_errors import InvalidRequestError
from server.api.ollama.messages import Message, conversation_of

ASK = {"role": "user", "content": "Rain?"}


def translated(*messages):
    return conversation_of([Message.model_validate(message) for message in messages]).messages


def calls(*functions):
    return {"role": "assistant", "tool_calls": [{"function": {"name": name}, **more} for name, more in functions]}


def answered(*messages):
    return [message["tool_call_id"] for message in translated(*messages) if message["role"] == "tool"]


def test_calls_without_ids_get_some():
    _, turn = translated(ASK, calls(("look", {}), ("hear", {})))
    assert [call["id"] for call in turn["tool_calls"]] == ["call_0", "call_1"]
    assert turn["tool_calls"][0]["function"] == {"name": "look", "arguments": "{}"}


def test_results_answer_calls_by_the_name_of_their_tool():
    results = [{"role": "tool", "content": name, "tool_name": name} for name in ("hear", "look")]
    assert answered(ASK, calls(("look", {}), ("hear", {})), *results) == ["call_1", "call_0"]


def test_results_without_names_answer_calls_in_their_order():
    result = {"role": "tool", "content": "no"}
    assert answered(ASK, calls(("look", {}), ("look", {})), result, result) == ["call_0", "call_1"]


def test_results_answer_calls_by_their_ids():
    result = {"role": "tool", "content": "no", "tool_call_id": "b", "tool_name": "look"}
    assert answered(ASK, calls(("look", {"id": "a"}), ("look", {"id": "b"})), result) == ["b"]


def test_an_id_that_only_the_client_knows_is_no_obstacle():
    result = {"role": "tool", "content": "no", "tool_call_id": "made up"}
    assert answered(ASK, calls(("look", {})), result) == ["call_0"]


def test_reasoning_of_the_assistant_comes_back():
    _, turn = translated(ASK, {"role": "assistant", "content": "No.", "thinking": "Hm"})
    assert (turn["reasoning_content"], turn["content"]) == ("Hm", [{"type": "text", "text": "No."}])


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ({"role": "tool", "content": "no"}, "'messages[1]' must follow a tool call that it answers."),
        (
            {"role": "user", "tool_calls": [{"function": {"name": "look"}}]},
            "'messages[1].tool_calls' is allowed only in messages of the assistant: leave it out.",
        ),
    ],
)
def test_messages_at_wrong_places_are_named(message, sentence):
    with pytest.raises(InvalidRequestError) as error:
        translated(ASK, message)
    assert error.value.message == sentence


def test_each_call_is_answered_once():
    result = {"role": "tool", "content": "no"}
    with pytest.raises(InvalidRequestError, match="must follow a tool call"):
        translated(ASK, calls(("look", {})), result, result)
