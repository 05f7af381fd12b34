"""Responses of scripted deltas: the order of the events, and the complete response."""

from __future__ import annotations

import pytest

from server.api.core.errors.api_errors import InternalError, RateLimitError
from server.api.core.replies.deltas import ReasoningDelta, TextDelta, ToolCallDelta
from server.api.openai.responses.body import ResponsesBody
from server.api.openai.responses.response_encoder import ResponseEncoder
from tests.server.api.openai.test_experts import GREENROOM
from tests.server.api.turns import all_events, scripted

BODY = ResponsesBody(input="Hello")
CALL = [
    [ToolCallDelta(0, id="call_a", name="weather")],
    [ToolCallDelta(0, '{"city": '), ToolCallDelta(0, '"Paris"}')],
]


def events_of(*deltas, reason="stop", body=BODY):
    turn, tokens = scripted(*deltas, reason=reason)
    encoder = ResponseEncoder(turn, body)
    return all_events(encoder, tokens), encoder.reply()


def kinds(events):
    return [event["type"].removeprefix("response.") for event in events]


TEXT_KINDS = ["output_item.added", "content_part.added", "output_text.delta"]
TEXT_END = ["output_text.done", "content_part.done", "output_item.done"]


def test_text_events_have_openais_order():
    events, _ = events_of([TextDelta("Hel")], [], [TextDelta("lo")])
    assert kinds(events) == [
        "created",
        "in_progress",
        *TEXT_KINDS,
        "output_text.delta",
        *TEXT_END,
        "completed",
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


def test_items_of_all_types_follow_each_other():
    """Each item is closed before the next begins, and has its index."""
    second = ToolCallDelta(1, "{}", id="call_b", name="time")
    events, reply = events_of([ReasoningDelta("Hm")], [TextDelta("Let me see")], *CALL, [second])
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
    assert [item["type"] for item in reply["output"]] == ["reasoning", "message", "function_call", "function_call"]
    assert [event["output_index"] for event in events if event["type"].endswith("item.done")] == [0, 1, 2, 3]


def test_complete_items_equal_those_of_the_events():
    events, reply = events_of([ReasoningDelta("H"), ReasoningDelta("m")], [TextDelta("Yes")], *CALL)
    assert [event["item"] for event in events if event["type"].endswith("item.done")] == reply["output"]
    assert events[-1]["response"] == reply
    reasoning, message, call = reply["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Hm"}]
    assert message["content"] == [{"type": "output_text", "text": "Yes", "annotations": [], "logprobs": []}]
    assert (call["call_id"], call["name"], call["arguments"]) == ("call_a", "weather", '{"city": "Paris"}')
    assert {item["status"] for item in reply["output"]} == {"completed"}
    assert len({item["id"] for item in reply["output"]}) == 3


def test_items_begin_empty_and_in_progress():
    events, _ = events_of([TextDelta("Yes")], *CALL)
    message, call = [event["item"] for event in events if event["type"].endswith("item.added")]
    assert (message["status"], message["content"]) == ("in_progress", [])
    assert (call["status"], call["arguments"]) == ("in_progress", "")


def test_text_after_a_call_is_another_message():
    _, reply = events_of([TextDelta("a")], *CALL, [TextDelta("b")], [ToolCallDelta(1, "{}", id="c", name="time")])
    assert [item["type"] for item in reply["output"]] == ["message", "function_call", "message", "function_call"]


def test_usage_counts_reasoning_separately():
    _, reply = events_of([], [ReasoningDelta("Hm")], [ReasoningDelta("m")], [TextDelta("Yes")])
    assert reply["usage"].pop("greenroom").keys() == GREENROOM.keys()
    assert reply["usage"] == {
        "input_tokens": 5,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 9,
    }


def test_an_empty_reply_is_an_empty_message():
    events, reply = events_of([])
    assert kinds(events)[2:4] == ["output_item.added", "content_part.added"]
    assert reply["output"][0]["content"][0]["text"] == ""


def test_a_reply_that_is_cut_and_its_last_item_are_incomplete():
    events, reply = events_of([ReasoningDelta("Hm")], [TextDelta("Yes")], reason="length")
    assert kinds(events)[-1] == "incomplete"
    assert reply["status"] == "incomplete"
    assert reply["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in reply["output"]] == ["completed", "incomplete"]
    assert reply["completed_at"] is None


@pytest.mark.parametrize(
    ("error", "code"), [(InternalError("no"), "server_error"), (RateLimitError("no"), "rate_limit_exceeded")]
)
def test_a_failed_response_has_the_complete_items(error, code):
    turn, tokens = scripted([ReasoningDelta("Hm")], [TextDelta("Yes")], [])
    encoder = ResponseEncoder(turn, BODY)
    all_events(encoder, tokens[:2])
    (event,) = encoder.failure_events(error)
    assert event["type"] == "response.failed"
    assert event["response"]["status"] == "failed"
    assert event["response"]["error"] == {"code": code, "message": "no"}
    assert event["response"]["usage"] is None
    assert [item["type"] for item in event["response"]["output"]] == ["reasoning"]
