"""Messages of scripted deltas: the order of the events, and the complete message."""

from __future__ import annotations

import dataclasses

import pytest

from server.api.anthropic.message_encoder import MessageEncoder
from server.api.core.errors.api_errors import InternalError
from server.api.core.replies.deltas import ReasoningDelta, TextDelta, ToolCallDelta
from tests.server.api.openai.test_experts import GREENROOM
from tests.server.api.turns import all_events, scripted

CALL = [
    [ToolCallDelta(0, id="call_a", name="weather")],
    [ToolCallDelta(0, '{"city": '), ToolCallDelta(0, '"Paris"}')],
]


def events_of(*deltas, reason="stop", stop=None, max_tokens=1):
    turn, tokens = scripted(*deltas, reason=reason)
    tokens[-1] = dataclasses.replace(tokens[-1], stop=stop)
    encoder = MessageEncoder(turn, max_tokens, "req_1")
    return all_events(encoder, tokens), encoder.reply()


def test_text_events_have_anthropics_order():
    events, _ = events_of([TextDelta("Hel")], [], [TextDelta("lo")])
    assert [event["type"] for event in events] == [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[0]["message"]["content"] == []
    assert events[0]["message"]["stop_reason"] is None
    assert events[2]["content_block"] == {"type": "text", "text": ""}
    assert events[3]["delta"] == {"type": "text_delta", "text": "Hel"}


def test_blocks_of_all_types_follow_each_other():
    second = ToolCallDelta(1, "{}", id="call_b", name="time")
    events, reply = events_of([ReasoningDelta("Hm")], [TextDelta("Yes")], *CALL, [second], reason="tool_calls")
    assert reply["content"] == [
        {"type": "thinking", "thinking": "Hm", "signature": ""},
        {"type": "text", "text": "Yes"},
        {"type": "tool_use", "id": "call_a", "name": "weather", "input": {"city": "Paris"}},
        {"type": "tool_use", "id": "call_b", "name": "time", "input": {}},
    ]
    starts = [event for event in events if event["type"] == "content_block_start"]
    assert [event["index"] for event in starts] == [0, 1, 2, 3]
    assert starts[0]["content_block"] == {"type": "thinking", "thinking": "", "signature": ""}
    assert starts[2]["content_block"] == {"type": "tool_use", "id": "call_a", "name": "weather", "input": {}}
    assert [event["index"] for event in events if event["type"] == "content_block_stop"] == [0, 1, 2, 3]
    assert [event["delta"] for event in events if event["type"] == "content_block_delta"] == [
        {"type": "thinking_delta", "thinking": "Hm"},
        {"type": "text_delta", "text": "Yes"},
        {"type": "input_json_delta", "partial_json": '{"city": '},
        {"type": "input_json_delta", "partial_json": '"Paris"}'},
        {"type": "input_json_delta", "partial_json": "{}"},
    ]


@pytest.mark.parametrize(
    ("reason", "stop", "stop_reason", "sequence"),
    [
        ("stop", None, "end_turn", None),
        ("stop", "END", "stop_sequence", "END"),
        ("length", None, "max_tokens", None),
        ("tool_calls", None, "tool_use", None),
        ("length", "END", "max_tokens", None),
    ],
)
def test_a_message_has_its_stop_reason(reason, stop, stop_reason, sequence):
    events, reply = events_of([TextDelta("Yes")], reason=reason, stop=stop)
    assert events[-2]["delta"] == {"stop_reason": stop_reason, "stop_sequence": sequence}
    assert (reply["stop_reason"], reply["stop_sequence"]) == (stop_reason, sequence)


def test_usage_is_complete_at_the_end():
    events, reply = events_of([TextDelta("a")], [TextDelta("b")])
    usage = {"input_tokens": 5, "output_tokens": 2, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    assert "greenroom" not in events[0]["message"]["usage"]
    assert events[-2]["usage"].pop("greenroom").keys() == GREENROOM.keys()
    assert reply["usage"].pop("greenroom")
    assert events[-2]["usage"] == reply["usage"] == usage
    assert events[0]["message"]["usage"] == usage | {"output_tokens": 0}


def test_a_message_cut_by_the_context_length_has_its_own_stop_reason():
    _, reply = events_of([TextDelta("a")], [TextDelta("b")], reason="length", max_tokens=3)
    assert reply["stop_reason"] == "model_context_window_exceeded"


@pytest.mark.parametrize(
    "arguments",
    ["[1]", "", "[" * 100_000, '{"days": 1e999}', '{"days": NaN}', '{"city": "\\ud800"}'],
)
def test_arguments_that_can_not_be_encoded_are_empty(arguments):
    _, reply = events_of([ToolCallDelta(0, arguments, id="call_a", name="weather")], reason="length")
    assert reply["content"][0]["input"] == {}


def test_a_failure_is_an_error_with_the_requests_id():
    turn, _ = scripted([])
    assert MessageEncoder(turn, 1, "req_1").failure_events(InternalError("no")) == [
        {"type": "error", "error": {"type": "api_error", "message": "no"}, "request_id": "req_1"}
    ]
