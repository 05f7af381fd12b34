"""Messages of pieces written by hand: the order of events, and that the whole says what they say."""

from __future__ import annotations

import dataclasses

import pytest

from server.api.anthropic.writer import MessageWriter
from server.api.errors import InternalError
from server.api.turn import ReasoningPiece, TextPiece, ToolCallPiece
from tests.server.api.openai.test_experts import GREENROOM
from tests.server.api.turns import told, written

CALL = [
    [ToolCallPiece(0, id="call_a", name="weather")],
    [ToolCallPiece(0, '{"city": '), ToolCallPiece(0, '"Paris"}')],
]


def events_of(*pieces, reason="stop", stop=None, max_tokens=1):
    turn, tokens = written(*pieces, reason=reason)
    tokens[-1] = dataclasses.replace(tokens[-1], stop=stop)
    writer = MessageWriter(turn, max_tokens, "req_1")
    return told(writer, tokens), writer.whole()


def test_text_is_told_in_anthropics_order():
    events, _ = events_of([TextPiece("Hel")], [], [TextPiece("lo")])
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


def test_all_kinds_of_blocks_follow_each_other():
    second = ToolCallPiece(1, "{}", id="call_b", name="time")
    events, whole = events_of([ReasoningPiece("Hm")], [TextPiece("Yes")], *CALL, [second], reason="tool_calls")
    assert whole["content"] == [
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
def test_it_is_told_why_a_message_ends(reason, stop, stop_reason, sequence):
    events, whole = events_of([TextPiece("Yes")], reason=reason, stop=stop)
    assert events[-2]["delta"] == {"stop_reason": stop_reason, "stop_sequence": sequence}
    assert (whole["stop_reason"], whole["stop_sequence"]) == (stop_reason, sequence)


def test_usage_is_whole_at_the_end():
    events, whole = events_of([TextPiece("a")], [TextPiece("b")])
    usage = {"input_tokens": 5, "output_tokens": 2, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    assert "greenroom" not in events[0]["message"]["usage"]
    assert events[-2]["usage"].pop("greenroom").keys() == GREENROOM.keys()
    assert whole["usage"].pop("greenroom")
    assert events[-2]["usage"] == whole["usage"] == usage
    assert events[0]["message"]["usage"] == usage | {"output_tokens": 0}


def test_a_message_that_its_context_cut_says_so():
    _, whole = events_of([TextPiece("a")], [TextPiece("b")], reason="length", max_tokens=3)
    assert whole["stop_reason"] == "model_context_window_exceeded"


@pytest.mark.parametrize(
    "arguments",
    ['{"city": "Pa', "[1]", "", "[" * 100_000, '{"days": 1e999}', '{"days": NaN}', '{"city": "\\ud800"}'],
)
def test_arguments_that_were_cut_or_cannot_be_told_are_none(arguments):
    _, whole = events_of([ToolCallPiece(0, arguments, id="call_a", name="weather")], reason="length")
    assert whole["content"][0]["input"] == {}


def test_a_failure_is_an_error_with_the_requests_id():
    turn, _ = written([])
    assert MessageWriter(turn, 1, "req_1").failure(InternalError("no")) == [
        {"type": "error", "error": {"type": "api_error", "message": "no"}, "request_id": "req_1"}
    ]
