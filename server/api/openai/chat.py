"""``/v1/chat/completions``: a conversation, continued by the assistant."""

import asyncio
from collections.abc import Sequence

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.api.auth import UserDep
from server.api.body import BodyRoute
from server.api.dependencies import ServiceDep
from server.api.openai.answer import answer
from server.api.openai.generation import submit
from server.api.openai.logprobs import chat_logprobs
from server.api.openai.replies import JsonObject
from server.api.openai.schemas import ChatBody
from server.api.openai.tools import NamedTool
from server.api.openai.turn_plan import plan_turn
from server.api.openapi import STREAMED
from server.api.service import Service
from server.api.turn import ChatTurn, EndPiece, Piece, ReasoningPiece, TextPiece, ToolCallPiece
from server.engine.request import TokenEvent

router = APIRouter(tags=["chat"], dependencies=[UserDep], route_class=BodyRoute)


class ChatStyle:
    """A choice is a message of the assistant; its pieces are deltas, the first of which names the role."""

    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, turn: ChatTurn, body: ChatBody) -> None:
        self._turn, self._codec = turn, turn.codec
        self._has_logprobs = body.logprobs
        self._names_a_tool = isinstance(body.tool_choice, NamedTool)

    def choice(self, index: int, events: Sequence[TokenEvent]) -> JsonObject:
        pieces = [piece for event in events for piece in self._turn.pieces(index, event)]
        finish_reason = next(self._reason(piece) for piece in pieces if isinstance(piece, EndPiece))
        tokens = [each for event in events for each in event.logprobs]
        logprobs = chat_logprobs(self._codec, tokens) if self._has_logprobs else None
        return {"index": index, "message": message_of(pieces), "logprobs": logprobs, "finish_reason": finish_reason}

    def opening(self, index: int) -> list[JsonObject]:
        return [self._chunk(index, {"role": "assistant", "content": ""})]

    def delta(self, index: int, event: TokenEvent) -> list[JsonObject]:
        chunks = [
            self._chunk(index, {}, self._reason(piece))
            if isinstance(piece, EndPiece)
            else self._chunk(index, delta_of(piece))
            for piece in self._turn.pieces(index, event)
        ]
        if event.logprobs:
            if not chunks or not chunks[0]["delta"]:  # their text is held back
                chunks.insert(0, self._chunk(index, {"content": ""}))
            chunks[0]["logprobs"] = chat_logprobs(self._codec, event.logprobs)
        return chunks

    def _reason(self, end: EndPiece) -> str:
        """A call that was asked for by name is what was wanted, and no reason to end, to OpenAI and vLLM."""
        return "stop" if self._names_a_tool and end.finish_reason == "tool_calls" else end.finish_reason

    def _chunk(self, index: int, delta: JsonObject, finish_reason: str | None = None) -> JsonObject:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def delta_of(piece: TextPiece | ReasoningPiece | ToolCallPiece) -> JsonObject:
    """What a piece adds to a message."""
    match piece:
        case TextPiece(text):
            return {"content": text}
        case ReasoningPiece(text):
            return {"reasoning_content": text}
        case ToolCallPiece(index, arguments, None):
            return {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}
        case ToolCallPiece(index):
            return {"tool_calls": [{"index": index, **call_of(piece)}]}


def call_of(piece: ToolCallPiece) -> JsonObject:
    return {"id": piece.id, "type": "function", "function": {"name": piece.name, "arguments": piece.arguments}}


def message_of(pieces: Sequence[Piece]) -> JsonObject:
    """The whole message; one that only thinks or calls has no content."""
    text = "".join(piece.text for piece in pieces if isinstance(piece, TextPiece))
    reasoning = "".join(piece.text for piece in pieces if isinstance(piece, ReasoningPiece))
    calls: list[JsonObject] = []
    for piece in pieces:
        if isinstance(piece, ToolCallPiece) and piece.id is not None:
            calls.append(call_of(piece))
        elif isinstance(piece, ToolCallPiece):
            calls[-1]["function"]["arguments"] += piece.arguments
    message = {"role": "assistant", "content": text or (None if calls or reasoning else ""), "refusal": None}
    return message | ({"reasoning_content": reasoning} if reasoning else {}) | ({"tool_calls": calls} if calls else {})


async def begin_chat(service: Service, body: ChatBody, id_prefix: str = "chatcmpl-") -> ChatTurn:
    """Hand a conversation to the engine.

    Raises:
        APIError: the server takes no such conversation, or none now.
        EngineError: the engine takes none.

    """
    model = service.accepting_model(body.model)
    service.unknown_fields.note(body.model_extra or ())
    plan = await asyncio.to_thread(plan_turn, body, model.codec)
    grammar = None if plan.spec is None else await model.grammars.compile(plan.spec)
    generation = submit(
        model, body, [plan.prompt.token_ids], id_prefix, "messages", plan.prompt.media, grammar, plan.written_tokens
    )
    return ChatTurn(generation, model.codec, [plan.parser() for _ in generation.streams])


@router.post("/v1/chat/completions", response_model=None, responses=STREAMED)
async def create_chat_completion(request: Request, body: ChatBody, service: ServiceDep) -> Response:
    turn = await begin_chat(service, body)
    return await answer(request, body, turn.generation, ChatStyle(turn, body))
