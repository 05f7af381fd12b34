"""Replies of scripted deltas in Ollama's form: complete tool calls, thinking, and durations."""

from __future__ import annotations

import json
import time

import pytest

from server.api.core.replies.deltas import ReasoningDelta, TextDelta, ToolCallDelta
from server.api.ollama.reply_encoder import ChatEncoder, GenerateEncoder
from tests.server.api.turns import scripted

CALL = [
    [ToolCallDelta(0, id="call_a", name="weather")],
    [ToolCallDelta(0, '{"city": '), ToolCallDelta(0, '"Paris"}')],
]
PARIS = {"id": "call_a", "function": {"index": 0, "name": "weather", "arguments": {"city": "Paris"}}}


def lines_of(*deltas, reason="stop", kind=ChatEncoder):
    turn, tokens = scripted(*deltas, reason=reason)
    encoder = kind(turn, "tiny", 0.0, has_logprobs=False)
    encoded = b"".join([encoder.start(), *(encoder.encode(0, token) for token in tokens), encoder.end()])
    return [json.loads(line) for line in encoded.splitlines()]


def test_a_call_is_sent_when_it_is_complete():
    lines = lines_of([TextDelta("I look.")], *CALL, reason="tool_calls")
    assert [line["message"] for line in lines] == [
        {"role": "assistant", "content": "I look."},
        {"role": "assistant", "content": "", "tool_calls": [PARIS]},
        {"role": "assistant", "content": ""},
    ]
    assert lines[-1]["done_reason"] == "stop"


def test_a_call_is_sent_before_what_follows_it():
    second = ToolCallDelta(1, "{}", id="call_b", name="time")
    messages = [line["message"] for line in lines_of(*CALL, [second], [TextDelta("Done")])]
    assert [message.get("tool_calls", [{}])[0].get("id") for message in messages] == ["call_a", "call_b", None, None]
    assert messages[2]["content"] == "Done"


@pytest.mark.parametrize("arguments", ['{"city": "Pa', ""])
def test_a_call_that_is_cut_is_left_out(arguments):
    lines = lines_of([ToolCallDelta(0, arguments, id="call_a", name="weather")], reason="length")
    assert [line["done_reason"] for line in lines] == ["length"]


@pytest.mark.parametrize("arguments", ["[1]", '{"days": NaN}', '{"city": "\\ud800"}', "[" * 100_000])
def test_arguments_that_ollama_can_not_have_are_empty(arguments):
    call, _ = lines_of([ToolCallDelta(0, arguments, id="call_a", name="weather")], reason="tool_calls")
    assert call["message"]["tool_calls"][0]["function"]["arguments"] == {}


@pytest.mark.parametrize(("kind", "place"), [(ChatEncoder, "message"), (GenerateEncoder, None)])
def test_thinking_is_apart_from_the_text(kind, place):
    thought, text, _ = lines_of([ReasoningDelta("Hm")], [TextDelta("Yes")], kind=kind)
    assert (thought[place] if place else thought)["thinking"] == "Hm"
    assert "thinking" not in (text[place] if place else text)


def test_durations_are_those_of_the_engine_in_nanoseconds():
    turn, _ = scripted([])
    now = time.monotonic()
    timeline = turn.generation.streams[0].timeline
    timeline.submitted_at, timeline.started_at = now - 9, now - 8
    timeline.first_token_at, timeline.ended_at = now - 5, now - 1
    last = json.loads(ChatEncoder(turn, "tiny", now - 10, has_logprobs=False).end())
    assert last["load_duration"] == pytest.approx(2e9)
    assert last["prompt_eval_duration"] == pytest.approx(3e9)
    assert last["eval_duration"] == pytest.approx(4e9)
    assert last["total_duration"] >= 10e9


def test_clients_can_divide_by_the_duration_of_one_token():
    assert lines_of([TextDelta("a")])[-1]["eval_duration"] > 0
