"""Replies in Ollama's form: complete, and as lines of JSON."""

import asyncio
import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from server.api.core.errors.api_errors import APIError
from server.api.core.json_text.encoding import encode_json, encode_long
from server.api.core.replies.chat_turn import ChatTurn
from server.api.core.replies.deltas import EndDelta, ReasoningDelta, TextDelta, ToolCallDelta
from server.api.core.replies.json_lines import JSON_LINES, json_line
from server.api.core.replies.reply import ReplyEncoder
from server.api.core.replies.usage import expert_usage
from server.api.core.requests.cost import OBJECTS_FORM
from server.api.ollama.errors import error_body
from server.api.ollama.tool_calls import CallAssembler
from server.api.openai.logprobs import chat_logprobs
from server.engine.interface import JsonObject, TokenEvent


def timestamp(seconds: float | None = None) -> str:
    """Return a Unix time, by default that of now, as Ollama writes it."""
    when = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return when.isoformat().replace("+00:00", "Z")


def nanoseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e9))


@dataclass(frozen=True)
class Part:
    """Some of a reply."""

    text: str = ""
    thinking: str = ""
    tool_calls: Sequence[JsonObject] = ()


def joined(parts: Sequence[Part]) -> Part:
    return Part(
        "".join(part.text for part in parts),
        "".join(part.thinking for part in parts),
        [call for part in parts for call in part.tool_calls],
    )


class OllamaEncoder(ReplyEncoder):
    """Encodes a turn as objects, of which the last is done.

    Args:
        model: the name of the model as the client wrote it.
        started_at: start of the request, by ``time.monotonic``.

    """

    media_type = JSON_LINES

    def __init__(self, turn: ChatTurn, model: str, started_at: float, *, has_logprobs: bool) -> None:
        super().__init__(turn.generation)
        self._turn, self._model, self._started_at = turn, model, started_at
        self._has_logprobs = has_logprobs
        self._logprobs: list[JsonObject] = []  # logprobs of tokens whose text the parser holds back
        self._calls = CallAssembler()
        self._done_reason = "stop"

    @staticmethod
    @abstractmethod
    def content(part: Part) -> JsonObject:
        """Return the fields of a part of the reply."""

    async def complete(self) -> Sequence[bytes]:
        parts: list[Part] = []
        async for arrived in self.generation.events():
            await self.generation.hold(sum(OBJECTS_FORM.held_bytes(event) for _, event in arrived))
            for _, event in arrived:
                parts += self._parts(event)
        reply = self._object(joined(parts)) | self._end()
        encoded = await asyncio.to_thread(encode_long, reply) if self._has_logprobs else encode_json(reply)
        return [encoded.encode()]

    def start(self) -> bytes:
        return b""

    def encode(self, index: int, event: TokenEvent) -> bytes:  # noqa: ARG002  there is one choice
        return b"".join([json_line(self._object(part) | {"done": False}) for part in self._parts(event)])

    def end(self) -> bytes:
        return json_line(self._object(Part()) | self._end())

    def failure(self, error: APIError) -> bytes:
        return json_line(error_body(error))

    def _parts(self, event: TokenEvent) -> list[Part]:
        """Return what an event adds to the reply; call it for every one, once and in order."""
        if self._has_logprobs:
            self._logprobs += chat_logprobs(self._turn.codec, event.logprobs)["content"]
        parts: list[Part] = []
        for delta in self._turn.deltas(0, event):
            match delta:
                case TextDelta(text):
                    parts += [*self._called(), Part(text)]
                case ReasoningDelta(text):
                    parts += [*self._called(), Part(thinking=text)]
                case ToolCallDelta():
                    parts += [Part(tool_calls=[call]) for call in self._calls.push(delta)]
                case EndDelta(reason):
                    parts += self._called(is_cut=reason == "length")
                    self._done_reason = "length" if reason == "length" else "stop"
        return parts

    def _called(self, *, is_cut: bool = False) -> list[Part]:
        return [Part(tool_calls=[call]) for call in self._calls.close(is_cut=is_cut)]

    def _object(self, part: Part) -> JsonObject:
        body = {"model": self._model, "created_at": timestamp(), **self.content(part)}
        logprobs, self._logprobs = self._logprobs, []
        return body | ({"logprobs": logprobs} if logprobs else {})

    def _end(self) -> JsonObject:
        """Return what the last object has besides its content: counts of tokens, and durations in nanoseconds."""
        generation = self.generation
        timeline = generation.streams[0].timeline
        started = timeline.submitted_at if timeline.started_at is None else timeline.started_at
        first = started if timeline.first_token_at is None else timeline.first_token_at
        ended = first if timeline.ended_at is None else timeline.ended_at
        return {
            "done": True,
            "done_reason": self._done_reason,
            "total_duration": nanoseconds(time.monotonic() - self._started_at),
            "load_duration": nanoseconds(started - self._started_at),
            "prompt_eval_count": generation.num_prompt_tokens,
            "prompt_eval_duration": nanoseconds(first - started),
            "eval_count": sum(generation.num_generated),
            "eval_duration": max(1, nanoseconds(ended - first)),  # clients divide by it
            "greenroom": expert_usage(generation.expert_usage) | generation.remarks,
        }


class ChatEncoder(OllamaEncoder):
    """Encodes the reply to ``/api/chat``."""

    @staticmethod
    def content(part: Part) -> JsonObject:
        message: JsonObject = {"role": "assistant", "content": part.text}
        if part.thinking:
            message["thinking"] = part.thinking
        if part.tool_calls:
            message["tool_calls"] = [*part.tool_calls]
        return {"message": message}


class GenerateEncoder(OllamaEncoder):
    """Encodes the reply to ``/api/generate``."""

    @staticmethod
    def content(part: Part) -> JsonObject:
        return {"response": part.text} | ({"thinking": part.thinking} if part.thinking else {})


def loaded(model: str, kind: type[OllamaEncoder]) -> JsonObject:
    """Return the reply to a request without a prompt, which Ollama's clients send to load a model."""
    return {"model": model, "created_at": timestamp(), **kind.content(Part()), "done": True, "done_reason": "load"}
