"""Replies as OpenAI's responses: complete, and as events."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from fastapi import status

from server.api.core.errors.api_errors import APIError, ResponseStoreError
from server.api.core.replies.chat_turn import ChatTurn
from server.api.core.replies.deltas import Delta, EndDelta, ReasoningDelta, TextDelta, ToolCallDelta
from server.api.core.replies.event_encoder import EventEncoder
from server.api.core.replies.usage import usage
from server.api.openai.logprobs import chat_logprobs
from server.api.openai.responses.body import ResponsesBody
from server.api.openai.responses.output_items import (
    FunctionCallItem,
    MessageItem,
    OutputItem,
    ReasoningItem,
    TextItem,
    event,
)
from server.api.openai.responses.tools import FunctionName, function_names, served_tools
from server.engine.interface import JsonObject, TokenEvent

log = logging.getLogger(__name__)

Keep = Callable[[JsonObject], None]
Text = TypeVar("Text", bound=TextItem)


class ResponseEncoder(EventEncoder):
    """Encodes a turn as a response of output items.

    Args:
        keep: stores the complete response; None if it is not to be stored.

    """

    def __init__(self, turn: ChatTurn, body: ResponsesBody, keep: Keep | None = None) -> None:
        super().__init__(turn, None if keep is None else self._store)
        self._body, self._keep = body, keep
        self._function_names = function_names(body.tools)
        self._output: list[JsonObject] = []  # complete items
        self._item: OutputItem | None = None  # the open item
        self._call: int | None = None  # index of the open item's tool call
        self._logprobs: list[JsonObject] = []  # logprobs of tokens whose text the parser holds back
        self._num_events = self._num_generated = self._num_reasoning = 0
        self._reply: JsonObject = {}

    def start_events(self) -> list[JsonObject]:
        response = self._response("in_progress")
        return self._numbered([event("created", response=response), event("in_progress", response=response)])

    def token_events(self, token: TokenEvent) -> list[JsonObject]:
        self._num_generated = token.num_generated
        if self._body.has_logprobs:
            self._logprobs += chat_logprobs(self._turn.codec, token.logprobs)["content"]
        return self._numbered([each for delta in self._turn.deltas(0, token) for each in self._delta_events(delta)])

    def failure_events(self, error: APIError) -> list[JsonObject]:
        is_full = error.status_code == status.HTTP_429_TOO_MANY_REQUESTS
        body = {"code": "rate_limit_exceeded" if is_full else "server_error", "message": error.message}
        return self._numbered([event("failed", response=self._response("failed") | {"error": body})])

    def reply(self) -> JsonObject:
        return self._reply

    def _store(self) -> None:
        """Store the response; if that fails, it says so itself, since its text is none the worse."""
        try:
            if self._keep is not None:
                self._keep(self._reply)
        except ResponseStoreError as error:
            log.error("A response is not stored: %s", error)  # noqa: TRY400  the store has logged the cause
            self._reply["store"] = False

    def _delta_events(self, delta: Delta) -> list[JsonObject]:
        match delta:
            case TextDelta(text):
                logprobs, self._logprobs = self._logprobs, []
                events, message = self._text_item(MessageItem)
                return [*events, *message.add(text, logprobs)]
            case ReasoningDelta(text):
                self._logprobs, self._num_reasoning = [], self._num_generated
                events, reasoning = self._text_item(ReasoningItem)
                return [*events, *reasoning.add(text)]
            case ToolCallDelta():
                self._logprobs = []
                return self._tool_call_events(delta)
            case EndDelta(reason):
                return self._end(reason)

    def _text_item(self, kind: type[Text]) -> tuple[list[JsonObject], Text]:
        """Return the open item if it is of this kind, else a new one with the events that open it."""
        if isinstance(self._item, kind):
            return [], self._item
        closed = self._close()
        item = kind(len(self._output))
        self._item = item
        return [*closed, *item.opened()], item

    def _tool_call_events(self, delta: ToolCallDelta) -> list[JsonObject]:
        events, call = [], self._item
        if not isinstance(call, FunctionCallItem) or self._call != delta.index:
            events = self._close()
            name = delta.name or ""
            call = FunctionCallItem(
                len(self._output), delta.id or "", self._function_names.get(name, FunctionName(name))
            )
            events += call.opened()
            self._item, self._call = call, delta.index
        return [*events, *call.add(delta.arguments)] if delta.arguments else events

    def _close(self, status: str = "completed") -> list[JsonObject]:
        """Close the open item, if there is one."""
        item, self._item = self._item, None
        if item is None:
            return []
        self._output.append(item.body(status))
        return item.closed(status)

    def _end(self, reason: str) -> list[JsonObject]:
        is_cut = reason == "length"
        events: list[JsonObject] = []
        if not self._output and self._item is None:
            events, _ = self._text_item(MessageItem)  # an empty message
        if self._logprobs and isinstance(self._item, MessageItem):
            events += self._item.add("", self._logprobs)
        final = "incomplete" if is_cut else "completed"
        events += self._close(final)
        self._reply = self._response(final) | {
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "completed_at": None if is_cut else int(time.time()),
        }
        return [*events, event(final, response=self._reply)]

    def _response(self, state: str) -> JsonObject:
        generation, body = self.generation, self._body
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
            "previous_response_id": body.previous_response_id,
            "reasoning": body.reasoning.model_dump(),
            "service_tier": "default",
            "store": self._keep is not None,
            "temperature": sampling.temperature if body.temperature is None else body.temperature,
            "text": body.text.model_dump(by_alias=True, exclude_none=True),
            "tool_choice": body.tool_choice,
            "tools": served_tools(body.tools),
            "top_logprobs": body.top_logprobs,
            "top_p": sampling.top_p if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": None if state in ("in_progress", "failed") else self._usage(),
            "user": body.user,
            **generation.greenroom_member,
        }

    def _usage(self) -> JsonObject:
        total = usage(self.generation)
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
