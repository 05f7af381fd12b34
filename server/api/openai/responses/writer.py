"""From the pieces of a turn to a response: whole, and as events while it grows."""

import time
from collections.abc import Sequence
from typing import TypeVar

from fastapi import status

from server.api.errors import APIError
from server.api.openai.logprobs import chat_logprobs
from server.api.openai.replies import JsonObject, usage
from server.api.openai.responses.body import ResponsesBody
from server.api.openai.responses.output import (
    FunctionCallItem,
    MessageItem,
    OutputItem,
    ReasoningItem,
    TextItem,
    event,
)
from server.api.turn import ChatTurn, EndPiece, Piece, ReasoningPiece, TextPiece, ToolCallPiece
from server.engine.request import TokenEvent

Text = TypeVar("Text", bound=TextItem)


class ResponseWriter:
    """A response that grows event by event; it is shown every event of its turn, once and in order."""

    def __init__(self, turn: ChatTurn, body: ResponsesBody) -> None:
        self._turn, self._body = turn, body
        self._output: list[JsonObject] = []  # items that are done
        self._item: OutputItem | None = None  # the one being written
        self._call: int | None = None  # its number among the turn's calls
        self._logprobs: list[JsonObject] = []  # of tokens whose text is still to come
        self._num_events = self._num_generated = self._num_reasoning = 0
        self._whole: JsonObject = {}

    def opening(self) -> list[JsonObject]:
        response = self._response("in_progress")
        return self._numbered([event("created", response=response), event("in_progress", response=response)])

    def write(self, token: TokenEvent) -> list[JsonObject]:
        self._num_generated = token.num_generated
        if self._body.has_logprobs:
            self._logprobs += chat_logprobs(self._turn.codec, token.logprobs)["content"]
        return self._numbered([each for piece in self._turn.pieces(0, token) for each in self._write(piece)])

    def failure(self, error: APIError) -> list[JsonObject]:
        is_full = error.status_code == status.HTTP_429_TOO_MANY_REQUESTS
        told = {"code": "rate_limit_exceeded" if is_full else "server_error", "message": error.message}
        return self._numbered([event("failed", response=self._response("failed") | {"error": told})])

    def whole(self) -> JsonObject:
        return self._whole

    def _write(self, piece: Piece) -> list[JsonObject]:
        match piece:
            case TextPiece(text):
                logprobs, self._logprobs = self._logprobs, []
                events, message = self._text_item(MessageItem)
                return [*events, *message.add(text, logprobs)]
            case ReasoningPiece(text):
                self._logprobs, self._num_reasoning = [], self._num_generated
                events, reasoning = self._text_item(ReasoningItem)
                return [*events, *reasoning.add(text)]
            case ToolCallPiece():
                self._logprobs = []
                return self._write_call(piece)
            case EndPiece(reason):
                return self._end(reason)

    def _text_item(self, kind: type[Text]) -> tuple[list[JsonObject], Text]:
        """The item to go on with, and the events of its beginning if it is new."""
        if isinstance(self._item, kind):
            return [], self._item
        closed = self._close()
        item = kind(len(self._output))
        self._item = item
        return [*closed, *item.opened()], item

    def _write_call(self, piece: ToolCallPiece) -> list[JsonObject]:
        events, call = [], self._item
        if not isinstance(call, FunctionCallItem) or self._call != piece.index:
            events = self._close()
            call = FunctionCallItem(len(self._output), piece.id or "", piece.name or "")
            events += call.opened()
            self._item, self._call = call, piece.index
        return [*events, *call.add(piece.arguments)] if piece.arguments else events

    def _close(self, ending: str = "completed") -> list[JsonObject]:
        """End the item that is being written, if there is one."""
        item, self._item = self._item, None
        if item is None:
            return []
        self._output.append(item.body(ending))
        return item.closed(ending)

    def _end(self, reason: str) -> list[JsonObject]:
        is_cut = reason == "length"
        events: list[JsonObject] = []
        if not self._output and self._item is None:
            events, _ = self._text_item(MessageItem)  # that says nothing
        if self._logprobs and isinstance(self._item, MessageItem):
            events += self._item.add("", self._logprobs)
        ending = "incomplete" if is_cut else "completed"
        events += self._close(ending)
        self._whole = self._response(ending) | {
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "completed_at": None if is_cut else int(time.time()),
        }
        return [*events, event(ending, response=self._whole)]

    def _response(self, state: str) -> JsonObject:
        generation, body = self._turn.generation, self._body
        sampling = generation.streams[0].request.sampling
        return {
            "id": generation.id,
            "object": "response",
            "created_at": generation.created,
            "completed_at": None,
            "status": state,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": None,
            "metadata": body.metadata,
            "model": generation.model,
            "output": [*self._output],
            "parallel_tool_calls": body.parallel_tool_calls,
            "previous_response_id": None,
            "reasoning": body.reasoning.model_dump(),
            "service_tier": "default",
            "store": False,
            "temperature": sampling.temperature,
            "text": body.text.model_dump(by_alias=True, exclude_none=True),
            "tool_choice": body.tool_choice,
            "tools": [tool.model_dump() for tool in body.tools],
            "top_logprobs": body.top_logprobs,
            "top_p": sampling.top_p,
            "truncation": "disabled",
            "usage": None if state in ("in_progress", "failed") else self._usage(),
            "user": body.user,
        }

    def _usage(self) -> JsonObject:
        total = usage(self._turn.generation)
        renamed = {
            "input_tokens": total.pop("prompt_tokens"),
            "input_tokens_details": {**total.pop("prompt_tokens_details"), "cache_write_tokens": 0},
            "output_tokens": total.pop("completion_tokens"),
            "output_tokens_details": {"reasoning_tokens": self._num_reasoning},
        }
        return renamed | total

    def _numbered(self, events: Sequence[JsonObject]) -> list[JsonObject]:
        first = self._num_events
        self._num_events += len(events)
        return [each | {"sequence_number": number} for number, each in enumerate(events, first)]
