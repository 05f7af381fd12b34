"""Responses of pieces written by hand: the order of events, and that the whole says what they say."""

from __future__ import annotations

import pytest

from server.api.errors import InternalError, RateLimitError
from server.api.openai.responses.body import ResponsesBody
from server.api.openai.responses.writer import ResponseWriter
from server.api.turn import ReasoningPiece, TextPiece, ToolCallPiece
from tests.server.api.openai.test_experts import GREENROOM
from tests.server.api.turns import told, written

BODY = ResponsesBody(input="Hello")
CALL = [
    [ToolCallPiece(0, id="call_a", name="weather")],
    [ToolCallPiece(0, '{"city": '), ToolCallPiece(0, '"Paris"}')],
]


def events_of(*pieces, reason="stop", body=BODY):
    turn, tokens = written(*pieces, reason=reason)
    writer = ResponseWriter(turn, body)
    return told(writer, tokens), writer.whole()


def kinds(events):
    return [event["type"].removeprefix("response.") for event in events]


TEXT_KINDS = ["output_item.added", "content_part.added", "output_text.delta"]
TEXT_END = ["output_text.done", "content_part.done", "output_item.done"]


def test_text_is_told_in_openais_order():
    events, _ = events_of([TextPiece("Hel")], [], [TextPiece("lo")])
    assert kinds(events) == [
        "created",
        "in_progress",
        *TEXT_KINDS,
        "output_text.delta",
        *TEXT_END,
        "completed",
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


def test_all_kinds_of_items_follow_each_other():
    """Each is closed before the next begins, and has its place."""
    second = ToolCallPiece(1, "{}", id="call_b", name="time")
    events, whole = events_of([ReasoningPiece("Hm")], [TextPiece("Let me see")], *CALL, [second])
    assert kinds(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        *TEXT_KINDS,
        *TEXT_END,
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert [item["type"] for item in whole["output"]] == ["reasoning", "message", "function_call", "function_call"]
    assert [event["output_index"] for event in events if event["type"].endswith("item.done")] == [0, 1, 2, 3]


def test_whole_items_are_those_of_the_events():
    events, whole = events_of([ReasoningPiece("H"), ReasoningPiece("m")], [TextPiece("Yes")], *CALL)
    assert [event["item"] for event in events if event["type"].endswith("item.done")] == whole["output"]
    assert events[-1]["response"] == whole
    reasoning, message, call = whole["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Hm"}]
    assert message["content"] == [{"type": "output_text", "text": "Yes", "annotations": [], "logprobs": []}]
    assert (call["call_id"], call["name"], call["arguments"]) == ("call_a", "weather", '{"city": "Paris"}')
    assert {item["status"] for item in whole["output"]} == {"completed"}
    assert len({item["id"] for item in whole["output"]}) == 3


def test_items_begin_empty_and_in_progress():
    events, _ = events_of([TextPiece("Yes")], *CALL)
    message, call = [event["item"] for event in events if event["type"].endswith("item.added")]
    assert (message["status"], message["content"]) == ("in_progress", [])
    assert (call["status"], call["arguments"]) == ("in_progress", "")


def test_text_after_a_call_is_another_message():
    _, whole = events_of([TextPiece("a")], *CALL, [TextPiece("b")], [ToolCallPiece(1, "{}", id="c", name="time")])
    assert [item["type"] for item in whole["output"]] == ["message", "function_call", "message", "function_call"]


def test_usage_tells_reasoning_apart():
    _, whole = events_of([], [ReasoningPiece("Hm")], [ReasoningPiece("m")], [TextPiece("Yes")])
    assert whole["usage"].pop("greenroom").keys() == GREENROOM.keys()
    assert whole["usage"] == {
        "input_tokens": 5,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 9,
    }


def test_a_reply_that_says_nothing_is_an_empty_message():
    events, whole = events_of([])
    assert kinds(events)[2:4] == ["output_item.added", "content_part.added"]
    assert whole["output"][0]["content"][0]["text"] == ""


def test_a_reply_that_is_cut_is_incomplete_and_so_is_its_last_item():
    events, whole = events_of([ReasoningPiece("Hm")], [TextPiece("Yes")], reason="length")
    assert kinds(events)[-1] == "incomplete"
    assert whole["status"] == "incomplete"
    assert whole["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in whole["output"]] == ["completed", "incomplete"]
    assert whole["completed_at"] is None


@pytest.mark.parametrize(
    ("error", "code"), [(InternalError("no"), "server_error"), (RateLimitError("no"), "rate_limit_exceeded")]
)
def test_a_failure_ends_the_response_with_what_was_done(error, code):
    turn, tokens = written([ReasoningPiece("Hm")], [TextPiece("Yes")], [])
    writer = ResponseWriter(turn, BODY)
    told(writer, tokens[:2])
    (event,) = writer.failure(error)
    assert event["type"] == "response.failed"
    assert event["response"]["status"] == "failed"
    assert event["response"]["error"] == {"code": code, "message": "no"}
    assert event["response"]["usage"] is None
    assert [item["type"] for item in event["response"]["output"]] == ["reasoning"]
