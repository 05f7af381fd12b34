"""Replies as Anthropic's messages: complete, and as events."""

import json
from dataclasses import dataclass, field
from typing import Any

from server.api.anthropic.errors import error_body
from server.api.core.errors.api_errors import APIError
from server.api.core.json_text.cut_json import parse_cut
from server.api.core.replies.chat_turn import ChatTurn
from server.api.core.replies.deltas import Delta, EndDelta, ReasoningDelta, TextDelta, ToolCallDelta
from server.api.core.replies.event_encoder import EventEncoder
from server.api.core.replies.usage import usage
from server.engine.interface import JsonObject, TokenEvent

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


@dataclass
class OpenBlock:
    """A content block that still grows.

    Args:
        start: the block as it begins.
        field_name: the field of ``start`` that grows.
        delta: the type of a delta, and the name of its only field.
        call: the index of the tool call; None for other blocks.

    """

    start: JsonObject
    field_name: str
    delta: tuple[str, str]
    call: int | None = None
    parts: list[str] = field(default_factory=list)

    @property
    def complete(self) -> JsonObject:
        text = "".join(self.parts)
        return self.start | {self.field_name: text if self.call is None else arguments_of(text)}


def arguments_of(text: str) -> dict[str, Any]:
    """Parse the arguments of a tool call as far as they came. Those that JSON can't encode become empty."""
    try:
        arguments, _ = parse_cut(text)
        json.dumps(arguments, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return {}
    return arguments if isinstance(arguments, dict) else {}


class MessageEncoder(EventEncoder):
    """Encodes a turn as a message of content blocks."""

    def __init__(self, turn: ChatTurn, max_tokens: int, request_id: str) -> None:
        super().__init__(turn)
        self._max_tokens, self._request_id = max_tokens, request_id
        self._content: list[JsonObject] = []  # complete blocks
        self._block: OpenBlock | None = None
        self._num_generated = 0
        self._stop: JsonObject = {"stop_reason": None, "stop_sequence": None}

    def start_events(self) -> list[JsonObject]:
        message = self.reply()
        del message["usage"]["greenroom"]  # unknown yet, and Anthropic's package would keep these values
        return [{"type": "message_start", "message": message}, {"type": "ping"}]

    def token_events(self, token: TokenEvent) -> list[JsonObject]:
        self._num_generated = token.num_generated
        return [event for delta in self._turn.deltas(0, token) for event in self._delta_events(delta, token.stop)]

    def failure_events(self, error: APIError) -> list[JsonObject]:
        return [error_body(error, self._request_id)]

    def reply(self) -> JsonObject:
        return {
            "id": self.generation.id,
            "type": "message",
            "role": "assistant",
            "model": self.generation.model,
            "content": [*self._content],
            **self._stop,
            "usage": self._usage(),
            **self.generation.greenroom_member,
        }

    def _delta_events(self, delta: Delta, stop: str | None) -> list[JsonObject]:
        match delta:
            case TextDelta(text):
                return self._grow({"type": "text", "text": ""}, "text", ("text_delta", "text"), text)
            case ReasoningDelta(text):
                start = {"type": "thinking", "thinking": "", "signature": ""}
                return self._grow(start, "thinking", ("thinking_delta", "thinking"), text)
            case ToolCallDelta():
                call: JsonObject = {"type": "tool_use", "id": delta.id, "name": delta.name, "input": {}}
                partial = ("input_json_delta", "partial_json")
                return self._grow(call, "input", partial, delta.arguments, delta.index)
            case EndDelta(reason):
                return self._end(reason, stop)

    def _grow(
        self, start: JsonObject, field_name: str, delta: tuple[str, str], text: str, call: int | None = None
    ) -> list[JsonObject]:
        """Add text to the open block, or to a new one if the open block is of another kind."""
        events: list[JsonObject] = []
        block = self._block
        if block is None or block.delta != delta or block.call != call:
            events = self._close()
            self._block = block = OpenBlock(start, field_name, delta, call)
            events.append({"type": "content_block_start", "index": len(self._content), "content_block": start})
        if text:
            block.parts.append(text)
            kind, name = delta
            body = {"type": kind, name: text}
            events.append({"type": "content_block_delta", "index": len(self._content), "delta": body})
        return events

    def _close(self) -> list[JsonObject]:
        """Close the open block, if there is one."""
        block, self._block = self._block, None
        if block is None:
            return []
        self._content.append(block.complete)
        return [{"type": "content_block_stop", "index": len(self._content) - 1}]

    def _end(self, reason: str, stop: str | None) -> list[JsonObject]:
        events = self._close()
        if reason == "stop" and stop is not None:
            self._stop = {"stop_reason": "stop_sequence", "stop_sequence": stop}
        elif reason == "length" and self._num_generated < self._max_tokens:
            self._stop["stop_reason"] = "model_context_window_exceeded"
        else:
            self._stop["stop_reason"] = STOP_REASONS[reason]
        last = {"type": "message_delta", "delta": self._stop, "usage": self._usage()}
        return [*events, last, {"type": "message_stop"}]

    def _usage(self) -> JsonObject:
        """Count tokens as Anthropic does: cached tokens are not among the input tokens."""
        total = usage(self.generation)
        num_cached = total.pop("prompt_tokens_details")["cached_tokens"]
        del total["total_tokens"]
        named = {
            "input_tokens": total.pop("prompt_tokens") - num_cached,
            "output_tokens": total.pop("completion_tokens"),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": num_cached,
        }
        return named | total
