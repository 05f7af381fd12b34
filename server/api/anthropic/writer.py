"""From the pieces of a turn to a message: whole, and as events while it grows."""

import json
from dataclasses import dataclass, field
from typing import Any

from server.api.anthropic.errors import error_body
from server.api.errors import APIError
from server.api.openai.replies import JsonObject, usage
from server.api.turn import ChatTurn, EndPiece, Piece, ReasoningPiece, TextPiece, ToolCallPiece
from server.engine.request import TokenEvent

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


@dataclass
class OpenBlock:
    """A block that is being written.

    Args:
        start: it as it begins.
        grows: the field of ``start`` that grows by deltas.
        delta: the type of a delta and the field that is in it.
        call: which of the turn's calls it is.

    """

    start: JsonObject
    grows: str
    delta: tuple[str, str]
    call: int | None = None
    written: list[str] = field(default_factory=list)

    @property
    def whole(self) -> JsonObject:
        text = "".join(self.written)
        return self.start | {self.grows: text if self.call is None else arguments_of(text)}


def arguments_of(text: str) -> dict[str, Any]:
    """A call's arguments; none if the turn ended before they were whole, or if JSON can't say them again."""
    try:
        arguments = json.loads(text)
        json.dumps(arguments, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return {}
    return arguments if isinstance(arguments, dict) else {}


class MessageWriter:
    """A message that grows event by event; it is shown every event of its turn, once and in order."""

    def __init__(self, turn: ChatTurn, max_tokens: int, request_id: str) -> None:
        self._turn, self._max_tokens, self._request_id = turn, max_tokens, request_id
        self._content: list[JsonObject] = []  # blocks that are done
        self._block: OpenBlock | None = None  # the one being written
        self._num_generated = 0
        self._ending: JsonObject = {"stop_reason": None, "stop_sequence": None}

    def opening(self) -> list[JsonObject]:
        message = self.whole()
        del message["usage"]["greenroom"]  # not known yet, and the package keeps what it is told here
        return [{"type": "message_start", "message": message}, {"type": "ping"}]

    def write(self, token: TokenEvent) -> list[JsonObject]:
        self._num_generated = token.num_generated
        return [event for piece in self._turn.pieces(0, token) for event in self._write(piece, token.stop)]

    def failure(self, error: APIError) -> list[JsonObject]:
        return [error_body(error, self._request_id)]

    def whole(self) -> JsonObject:
        generation = self._turn.generation
        return {
            "id": generation.id,
            "type": "message",
            "role": "assistant",
            "model": generation.model,
            "content": [*self._content],
            **self._ending,
            "usage": self._usage(),
        }

    def _write(self, piece: Piece, stop: str | None) -> list[JsonObject]:
        match piece:
            case TextPiece(text):
                return self._grow({"type": "text", "text": ""}, "text", ("text_delta", "text"), text)
            case ReasoningPiece(text):
                start = {"type": "thinking", "thinking": "", "signature": ""}
                return self._grow(start, "thinking", ("thinking_delta", "thinking"), text)
            case ToolCallPiece():
                call: JsonObject = {"type": "tool_use", "id": piece.id, "name": piece.name, "input": {}}
                delta = ("input_json_delta", "partial_json")
                return self._grow(call, "input", delta, piece.arguments, piece.index)
            case EndPiece(reason):
                return self._end(reason, stop)

    def _grow(
        self, start: JsonObject, grows: str, delta: tuple[str, str], text: str, call: int | None = None
    ) -> list[JsonObject]:
        """Go on with the open block, or with a new one that begins with ``start``."""
        events: list[JsonObject] = []
        block = self._block
        if block is None or block.delta != delta or block.call != call:
            events = self._close()
            self._block = block = OpenBlock(start, grows, delta, call)
            events.append({"type": "content_block_start", "index": len(self._content), "content_block": start})
        if text:
            block.written.append(text)
            kind, name = delta
            told = {"type": kind, name: text}
            events.append({"type": "content_block_delta", "index": len(self._content), "delta": told})
        return events

    def _close(self) -> list[JsonObject]:
        """End the block that is being written, if there is one."""
        block, self._block = self._block, None
        if block is None:
            return []
        self._content.append(block.whole)
        return [{"type": "content_block_stop", "index": len(self._content) - 1}]

    def _end(self, reason: str, stop: str | None) -> list[JsonObject]:
        events = self._close()
        if reason == "stop" and stop is not None:
            self._ending = {"stop_reason": "stop_sequence", "stop_sequence": stop}
        elif reason == "length" and self._num_generated < self._max_tokens:
            self._ending["stop_reason"] = "model_context_window_exceeded"
        else:
            self._ending["stop_reason"] = STOP_REASONS[reason]
        ending = {"type": "message_delta", "delta": self._ending, "usage": self._usage()}
        return [*events, ending, {"type": "message_stop"}]

    def _usage(self) -> JsonObject:
        """What was in the cache is not among the input tokens, as is Anthropic's way of counting."""
        total = usage(self._turn.generation)
        num_cached = total.pop("prompt_tokens_details")["cached_tokens"]
        del total["total_tokens"]
        named = {
            "input_tokens": total.pop("prompt_tokens") - num_cached,
            "output_tokens": total.pop("completion_tokens"),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": num_cached,
        }
        return named | total
