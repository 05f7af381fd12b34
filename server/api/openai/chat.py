"""``/v1/chat/completions``: the next message of a conversation."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.api.core.auth import UserDep
from server.api.core.body import JsonBody
from server.api.core.chat_turn import ChatTurn
from server.api.core.deltas import Delta, EndDelta, ReasoningDelta, TextDelta, ToolCallDelta
from server.api.core.dependencies import ServiceDep
from server.api.core.errors import InvalidRequestError
from server.api.core.openapi import STREAMED
from server.api.core.reply import answer
from server.api.core.service import Service
from server.api.openai.bodies import ChatBody
from server.api.openai.chunk_encoder import ChunkEncoder
from server.api.openai.logprobs import chat_logprobs, prompt_logprobs
from server.api.openai.prompt_tokens import bad_word_ids, prompt_limit
from server.api.openai.submit import submit, submit_to
from server.api.openai.tools import NamedTool
from server.api.openai.turn_plan import compile_grammar, plan_turn
from server.engine.interface import ChatPrompt, JsonObject, TokenEvent

MAX_ROUTED_CHARACTERS = 1024

router = APIRouter(tags=["chat"], dependencies=[UserDep])


class ChatEncoder(ChunkEncoder):
    """Encodes each choice as a message of the assistant; the first chunk of a choice has the role."""

    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, turn: ChatTurn, body: ChatBody) -> None:
        super().__init__(turn.generation, include_usage=body.include_usage, has_token_ids=body.return_token_ids)
        self._turn, self._codec = turn, turn.codec
        self._has_logprobs = body.logprobs
        self._has_prompt_logprobs = body.prompt_logprobs is not None
        self._has_named_tool = isinstance(body.tool_choice, NamedTool)

    def choice(self, index: int, events: Sequence[TokenEvent]) -> JsonObject:
        deltas = [delta for event in events for delta in self._turn.deltas(index, event)]
        finish_reason = next(self._finish_reason(delta) for delta in deltas if isinstance(delta, EndDelta))
        tokens = [each for event in events for each in event.logprobs]
        logprobs = chat_logprobs(self._codec, tokens) if self._has_logprobs else None
        choice = {"index": index, "message": message_of(deltas), "logprobs": logprobs, "finish_reason": finish_reason}
        return choice | self._token_ids(events)

    def more(self, events: Sequence[Sequence[TokenEvent]]) -> JsonObject:
        more = {"prompt_logprobs": prompt_logprobs(self._codec, events[0])} if self._has_prompt_logprobs else {}
        return more | self._prompt_token_ids(0)

    def start_choices(self, index: int) -> list[JsonObject]:
        return [self._choice(index, {"role": "assistant", "content": ""})]

    def start_more(self, index: int) -> JsonObject:
        return self._prompt_token_ids(index)

    def chunk_choices(self, index: int, event: TokenEvent) -> list[JsonObject]:
        choices = [
            self._choice(index, {}, self._finish_reason(delta))
            if isinstance(delta, EndDelta)
            else self._choice(index, encode_delta(delta))
            for delta in self._turn.deltas(index, event)
        ]
        if event.logprobs:
            if not choices or not choices[0]["delta"]:  # the parser holds back the text of these tokens
                choices.insert(0, self._choice(index, {"content": ""}))
            choices[0]["logprobs"] = chat_logprobs(self._codec, event.logprobs)
        if self._has_token_ids:
            first, *others = choices or [self._choice(index, {"content": ""})]
            return [first | self._token_ids([event]), *(each | self._token_ids([]) for each in others)]
        return choices

    def _finish_reason(self, end: EndDelta) -> str:
        """Return "stop" for a call of the tool that ``tool_choice`` names, as OpenAI and vLLM do."""
        return "stop" if self._has_named_tool and end.finish_reason == "tool_calls" else end.finish_reason

    def _choice(self, index: int, delta: JsonObject, finish_reason: str | None = None) -> JsonObject:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def encode_delta(delta: TextDelta | ReasoningDelta | ToolCallDelta) -> JsonObject:
    """Return the ``delta`` of a chunk."""
    match delta:
        case TextDelta(text):
            return {"content": text}
        case ReasoningDelta(text):
            return {"reasoning_content": text}
        case ToolCallDelta(index, arguments, None):
            return {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}
        case ToolCallDelta(index):
            return {"tool_calls": [{"index": index, **tool_call_of(delta)}]}


def tool_call_of(delta: ToolCallDelta) -> JsonObject:
    return {"id": delta.id, "type": "function", "function": {"name": delta.name, "arguments": delta.arguments}}


def message_of(deltas: Sequence[Delta]) -> JsonObject:
    """Build the complete message; ``content`` is null if there is only reasoning or tool calls."""
    text = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
    reasoning = "".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta))
    calls: list[JsonObject] = []
    for delta in deltas:
        if isinstance(delta, ToolCallDelta) and delta.id is not None:
            calls.append(tool_call_of(delta))
        elif isinstance(delta, ToolCallDelta):
            calls[-1]["function"]["arguments"] += delta.arguments
    message = {"role": "assistant", "content": text or (None if calls or reasoning else ""), "refusal": None}
    return message | ({"reasoning_content": reasoning} if reasoning else {}) | ({"tool_calls": calls} if calls else {})


def truncated(prompt: ChatPrompt, limit: int | None) -> ChatPrompt:
    """Cut a prompt to its last tokens.

    Raises:
        InvalidRequestError: it has images.

    """
    if limit is None or limit >= len(prompt.token_ids):
        return prompt
    if prompt.media is not None:
        raise InvalidRequestError(
            "'truncate_prompt_tokens' can't cut a conversation with images: leave it out.", "truncate_prompt_tokens"
        )
    return ChatPrompt(prompt.token_ids[-limit:])


def routed_texts(body: ChatBody) -> list[str]:
    """Return what a router compares with examples: the last that the user wrote, in all messages of the user."""
    text = "\n".join(message.text for message in body.messages if message.role == "user")
    return [text[-MAX_ROUTED_CHARACTERS:]]


async def begin_chat(request: Request, service: Service, body: ChatBody, id_prefix: str = "chatcmpl-") -> ChatTurn:
    """Submit a conversation to the engine.

    Raises:
        APIError: the server does not take the conversation, or not now.
        EngineError: the engine does not take it.

    """
    model = await service.accepting_model(body.model, body.adapters, body.routing)
    service.unknown_fields.note(body.model_extra or ())
    plan = await asyncio.to_thread(plan_turn, body, model.codec)
    service.unenforced.note(plan.unenforced)
    grammar = await compile_grammar(plan, model.grammar_compiler)
    prompt = truncated(plan.prompt, prompt_limit(body, model.engine.max_model_len))
    bad_words = await asyncio.to_thread(bad_word_ids, body.bad_words, model.codec) if body.bad_words else frozenset()
    submitting = partial(
        submit,
        body=body,
        prompts=[prompt.token_ids],
        id_prefix=id_prefix,
        prompt_field="messages",
        media=prompt.media,
        grammar=grammar,
        written_tokens=plan.written_tokens,
        muted=replace(plan.muted, sequences=plan.muted.sequences | bad_words),
    )
    generation = await submit_to(request, model, body, partial(routed_texts, body), "messages", submitting)
    return ChatTurn(generation, model.codec, [plan.parser() for _ in generation.streams])


@router.post("/v1/chat/completions", response_model=None, responses=STREAMED)
async def create_chat_completion(
    request: Request, body: Annotated[ChatBody, JsonBody(ChatBody)], service: ServiceDep
) -> Response:
    turn = await begin_chat(request, service, body)
    return await answer(request, ChatEncoder(turn, body), stream=body.stream)
