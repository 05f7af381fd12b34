"""``/v1/chat/completions``: the next message of a conversation."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from io import StringIO
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.api.core.errors.api_errors import InvalidRequestError
from server.api.core.json_text.parts import JsonList
from server.api.core.replies.chat_turn import ChatTurn
from server.api.core.replies.deltas import Delta, EndDelta, ReasoningDelta, TextDelta, ToolCallDelta
from server.api.core.replies.reply import answer
from server.api.core.requests.cost import CHAT_FORM, OBJECTS_FORM, ReplyForm
from server.api.core.service.body import JsonBody
from server.api.core.service.dependencies import ServiceDep
from server.api.core.service.guard import UserDep
from server.api.core.service.openapi import STREAMED
from server.api.core.service.service import Service
from server.api.openai.bodies import ChatBody
from server.api.openai.chunk_encoder import CHARACTER_BYTES, ChoiceBuilder, ChunkEncoder, TextChoice
from server.api.openai.ignored_fields import note_ignored
from server.api.openai.logprobs import chat_logprobs, prompt_logprobs
from server.api.openai.prompt_tokens import bad_word_ids, prompt_limit
from server.api.openai.submit import admit, submit, submit_to
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

    def builder(self, index: int) -> "MessageBuilder":
        return MessageBuilder(
            index,
            self._turn,
            self.finish_reason,
            has_logprobs=self._has_logprobs,
            has_prompt_logprobs=self._has_prompt_logprobs and index == 0,
            has_token_ids=self._has_token_ids,
        )

    def more(self, choices: Sequence[ChoiceBuilder]) -> JsonObject:
        first = choices[0]
        assert isinstance(first, MessageBuilder)
        more = {} if first.prompt_logprobs is None else {"prompt_logprobs": first.prompt_logprobs}
        return more | self._prompt_token_ids(0)

    def start_choices(self, index: int) -> list[JsonObject]:
        return [self._choice(index, {"role": "assistant", "content": ""})]

    def start_more(self, index: int) -> JsonObject:
        return self._prompt_token_ids(index)

    def text_choice(self, index: int, text: TextChoice) -> JsonObject:
        return self._choice(index, {text.field: text.text})

    def chunk_choices(self, index: int, event: TokenEvent) -> Sequence[JsonObject | TextChoice]:
        deltas = self._turn.deltas(index, event)
        if self._is_plain and not event.logprobs:
            return [self._plain_choice(index, delta) for delta in deltas]
        choices = [self._delta_choice(index, delta) for delta in deltas]
        if event.logprobs:
            if not choices or not choices[0]["delta"]:  # the parser holds back the text of these tokens
                choices.insert(0, self._choice(index, {"content": ""}))
            choices[0]["logprobs"] = chat_logprobs(self._codec, event.logprobs)
        if self._has_token_ids:
            first, *others = choices or [self._choice(index, {"content": ""})]
            return [first | self._token_ids(event), *(each | self._token_ids() for each in others)]
        return choices

    def _plain_choice(self, index: int, delta: Delta) -> JsonObject | TextChoice:
        match delta:
            case TextDelta(text):
                return TextChoice("content", text)
            case ReasoningDelta(text):
                return TextChoice("reasoning_content", text)
        return self._delta_choice(index, delta)

    def _delta_choice(self, index: int, delta: Delta) -> JsonObject:
        if isinstance(delta, EndDelta):
            return self._choice(index, {}, self.finish_reason(delta))
        return self._choice(index, encode_delta(delta))

    def finish_reason(self, end: EndDelta) -> str:
        """Return "stop" for a call of the tool that ``tool_choice`` names, as OpenAI and vLLM do."""
        return "stop" if self._has_named_tool and end.finish_reason == "tool_calls" else end.finish_reason

    def _choice(self, index: int, delta: JsonObject, finish_reason: str | None = None) -> JsonObject:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


class MessageBuilder(ChoiceBuilder):
    """Builds a choice of a complete reply.

    Args:
        finish_reason: returns the reason for the end of the turn.

    """

    def __init__(
        self,
        index: int,
        turn: ChatTurn,
        finish_reason: Callable[[EndDelta], str],
        *,
        has_logprobs: bool,
        has_prompt_logprobs: bool,
        has_token_ids: bool,
    ) -> None:
        super().__init__(has_token_ids=has_token_ids)
        self._index, self._turn, self._reason_of = index, turn, finish_reason
        self._text, self._reasoning = StringIO(), StringIO()
        self._calls: list[tuple[ToolCallDelta, StringIO]] = []
        self._logprobs = JsonList() if has_logprobs else None
        self.prompt_logprobs = JsonList([None]) if has_prompt_logprobs else None
        self._finish_reason: str | None = None
        self._num_characters = 0

    def add(self, event: TokenEvent) -> None:
        super().add(event)
        self._num_characters += len(event.text)
        for delta in self._turn.deltas(self._index, event):
            match delta:
                case TextDelta(text):
                    self._text.write(text)
                case ReasoningDelta(text):
                    self._reasoning.write(text)
                case ToolCallDelta():
                    if delta.id is not None:
                        self._calls.append((delta, StringIO()))
                    self._calls[-1][1].write(delta.arguments)
                case EndDelta():
                    self._finish_reason = self._reason_of(delta)
        if self._logprobs is not None:
            self._logprobs.extend(chat_logprobs(self._turn.codec, event.logprobs)["content"])
        if self.prompt_logprobs is not None and event.prompt_logprobs is not None:
            self.prompt_logprobs = prompt_logprobs(self._turn.codec, event.prompt_logprobs)

    def choice(self) -> JsonObject:
        logprobs = None if self._logprobs is None else {"content": self._logprobs, "refusal": None}
        calls = [tool_call_of(replace(delta, arguments=arguments.getvalue())) for delta, arguments in self._calls]
        choice = {
            "index": self._index,
            "message": message_of(self._text.getvalue(), self._reasoning.getvalue(), calls),
            "logprobs": logprobs,
            "finish_reason": self._finish_reason,
        }
        return choice | self.token_ids

    @property
    def nbytes(self) -> int:
        lists = (self._logprobs, self.prompt_logprobs)
        return super().nbytes + CHARACTER_BYTES * self._num_characters + sum(each.nbytes for each in lists if each)


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


def message_of(text: str, reasoning: str, calls: Sequence[JsonObject]) -> JsonObject:
    """Return the complete message; ``content`` is null if there is only reasoning or tool calls."""
    message = {"role": "assistant", "content": text or (None if calls or reasoning else ""), "refusal": None}
    more: JsonObject = {"reasoning_content": reasoning} if reasoning else {}
    return message | more | ({"tool_calls": [*calls]} if calls else {})


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
    """Return what a router compares with examples: the end of each turn of the user that has text."""
    return [
        message.text[-MAX_ROUTED_CHARACTERS:]
        for message in body.messages
        if message.role == "user" and message.text.strip()
    ]


async def begin_chat(
    request: Request,
    service: Service,
    body: ChatBody,
    id_prefix: str = "chatcmpl-",
    form: ReplyForm = OBJECTS_FORM,
) -> ChatTurn:
    """Submit a conversation to the engine.

    Args:
        form: what the dialect's reply holds until it is complete.

    Raises:
        APIError: the server does not take the conversation, or not now.
        EngineError: the engine does not take it.

    """
    model = await service.accepting_model(body.model, body.adapters, body.routing)
    note_ignored(body, service)
    plan = await asyncio.to_thread(plan_turn, body, model.codec)
    service.unenforced.note(plan.unenforced)
    grammar = await compile_grammar(plan, model.grammar_compiler)
    prompt = truncated(plan.prompt, prompt_limit(body, model.engine.max_model_len))
    bad_words = await asyncio.to_thread(bad_word_ids, body.bad_words, model.codec) if body.bad_words else frozenset()
    admitted = await admit(request, model, body, prompts=[prompt.token_ids], prompt_field="messages", form=form)
    submitting = partial(
        submit,
        body=body,
        admitted=admitted,
        id_prefix=id_prefix,
        prompt_field="messages",
        media=prompt.media,
        grammar=grammar,
        written_tokens=plan.written_tokens,
        muted=replace(plan.muted, sequences=plan.muted.sequences | bad_words),
    )
    generation = await submit_to(
        request,
        model,
        body,
        admitted=admitted,
        texts=partial(routed_texts, body),
        field="messages",
        submitting=submitting,
        is_chat=True,
    )
    return ChatTurn(generation, model.codec, [plan.parser() for _ in generation.streams])


@router.post("/v1/chat/completions", response_model=None, responses=STREAMED)
async def create_chat_completion(
    request: Request, body: Annotated[ChatBody, JsonBody(ChatBody)], service: ServiceDep
) -> Response:
    turn = await begin_chat(request, service, body, form=CHAT_FORM)
    return await answer(request, ChatEncoder(turn, body), stream=body.stream)
