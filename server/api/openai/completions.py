"""``/v1/completions``: plain text or tokens, continued."""

import asyncio
from collections.abc import Sequence

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.api.auth import UserDep
from server.api.body import BodyRoute
from server.api.dependencies import ServiceDep
from server.api.errors import InvalidRequestError
from server.api.openai.answer import answer
from server.api.openai.fields import Prompt
from server.api.openai.generation import submit
from server.api.openai.logprobs import CompletionLogprobs, Echo
from server.api.openai.replies import JsonObject
from server.api.openai.schemas import CompletionBody
from server.api.openapi import STREAMED
from server.engine.request import FinishReason, TextCodec, TokenEvent

router = APIRouter(tags=["completions"], dependencies=[UserDep], route_class=BodyRoute)


class CompletionStyle:
    """A choice is a text, whole or in pieces; ``echoes`` are the prompts that stand before it, or None.

    With logprobs a prompt is echoed once those of its tokens are there, else at once.
    """

    object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, codec: TextCodec, body: CompletionBody, echoes: Sequence[Echo] | None) -> None:
        self._codec = codec
        self._has_logprobs = body.logprobs is not None
        self._echoes, self._num_choices = echoes, body.n

    def choice(self, index: int, events: Sequence[TokenEvent]) -> JsonObject:
        text = self._echoed(index) + "".join(event.text for event in events)
        return self._piece(index, text, self._logprobs(index, events), events[-1].finish_reason)

    def opening(self, index: int) -> list[JsonObject]:
        echo = self._echoed(index)
        return [self._piece(index, echo, None, None)] if echo and not self._has_logprobs else []

    def delta(self, index: int, event: TokenEvent) -> list[JsonObject]:
        is_echoed_now = event.prompt_logprobs is not None
        text = self._echoed(index) + event.text if is_echoed_now else event.text
        if not (text or event.logprobs or event.finish_reason is not None):
            return []
        logprobs = self._logprobs(index, [event]) if event.logprobs or is_echoed_now else None
        return [self._piece(index, text, logprobs, event.finish_reason)]

    def _echo(self, index: int) -> Echo | None:
        return None if self._echoes is None else self._echoes[index // self._num_choices]

    def _echoed(self, index: int) -> str:
        echo = self._echo(index)
        return "" if echo is None else echo.text

    def _logprobs(self, index: int, events: Sequence[TokenEvent]) -> JsonObject | None:
        if not self._has_logprobs:
            return None
        lists, echo = CompletionLogprobs(self._codec), self._echo(index)
        for event in events:
            if echo is not None and event.prompt_logprobs is not None:
                lists.add_prompt(echo, event.prompt_logprobs)
            lists.add(event.logprobs, len(self._echoed(index)))
        return lists.body()

    def _piece(
        self, index: int, text: str, logprobs: JsonObject | None, finish_reason: FinishReason | None
    ) -> JsonObject:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


@router.post("/v1/completions", response_model=None, responses=STREAMED)
async def create_completion(request: Request, body: CompletionBody, service: ServiceDep) -> Response:
    model = service.accepting_model(body.model)
    service.unknown_fields.note(body.model_extra or ())
    if body.echo and model.engine.reads_whole:
        raise InvalidRequestError("This model answers prompts instead of continuing them: leave out 'echo'.", "echo")
    prompts = await asyncio.to_thread(token_ids, body.prompt, model.codec)
    echoes = await asyncio.to_thread(echoes_of, body.prompt, prompts, model.codec) if body.echo else None
    spec = body.grammar_spec
    grammar = None if spec is None else await model.grammars.compile(spec)
    generation = submit(model, body, prompts, "cmpl-", "prompt", grammar=grammar)
    return await answer(request, body, generation, CompletionStyle(model.codec, body, echoes))


def token_ids(prompts: Sequence[Prompt], codec: TextCodec) -> list[list[int]]:
    return [codec.encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]


def echoes_of(prompts: Sequence[Prompt], ids: Sequence[Sequence[int]], codec: TextCodec) -> list[Echo]:
    return [Echo.of(prompt, token_ids, codec) for prompt, token_ids in zip(prompts, ids, strict=True)]
