"""``/v1/completions``: the continuation of texts or lists of tokens."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.api.core.auth import UserDep
from server.api.core.body import JsonBody
from server.api.core.dependencies import ServiceDep
from server.api.core.errors import InvalidRequestError
from server.api.core.generation import Generation
from server.api.core.loaded_model import LoadedModel
from server.api.core.openapi import STREAMED
from server.api.core.reply import answer
from server.api.openai.bodies import CompletionBody
from server.api.openai.chunk_encoder import ChunkEncoder
from server.api.openai.fields import Prompt
from server.api.openai.logprobs import CompletionLogprobs, Echo, prompt_logprobs
from server.api.openai.muted_tokens import MutedTokens
from server.api.openai.prompt_tokens import bad_word_ids, last_tokens, prompt_limit
from server.api.openai.submit import submit, submit_to
from server.engine.interface import FinishReason, JsonObject, TextCodec, TokenEvent

router = APIRouter(tags=["completions"], dependencies=[UserDep])


class CompletionEncoder(ChunkEncoder):
    """Encodes each choice as text.

    With logprobs, the prompt is echoed when its logprobs are there, else before the first token.

    Args:
        echoes: the prompts that precede their completions; None without ``echo``.

    """

    object = "text_completion"
    chunk_object = "text_completion"

    def __init__(
        self, generation: Generation, codec: TextCodec, body: CompletionBody, echoes: Sequence[Echo] | None
    ) -> None:
        super().__init__(generation, include_usage=body.include_usage, has_token_ids=body.return_token_ids)
        self._codec = codec
        self._has_logprobs = body.logprobs is not None
        self._has_prompt_logprobs = body.prompt_logprobs is not None
        self._echoes, self._num_choices = echoes, body.n

    def choice(self, index: int, events: Sequence[TokenEvent]) -> JsonObject:
        text = self._echo_text(index) + "".join(event.text for event in events)
        choice = self._choice(index, text, self._logprobs(index, events), events[-1].finish_reason)
        more = {"prompt_logprobs": prompt_logprobs(self._codec, events)} if self._has_prompt_logprobs else {}
        return choice | more | self._prompt_token_ids(index) | self._token_ids(events)

    def start_choices(self, index: int) -> list[JsonObject]:
        text = "" if self._has_logprobs else self._echo_text(index)
        if not (text or self._has_token_ids):
            return []
        return [self._choice(index, text, None, None) | self._prompt_token_ids(index) | self._token_ids([])]

    def chunk_choices(self, index: int, event: TokenEvent) -> list[JsonObject]:
        echoes_now = event.prompt_logprobs is not None
        text = self._echo_text(index) + event.text if echoes_now else event.text
        if not (text or event.logprobs or event.finish_reason is not None or self._has_token_ids):
            return []
        logprobs = self._logprobs(index, [event]) if event.logprobs or echoes_now else None
        return [self._choice(index, text, logprobs, event.finish_reason) | self._token_ids([event])]

    def _echo(self, index: int) -> Echo | None:
        return None if self._echoes is None else self._echoes[index // self._num_choices]

    def _echo_text(self, index: int) -> str:
        echo = self._echo(index)
        return "" if echo is None else echo.text

    def _logprobs(self, index: int, events: Sequence[TokenEvent]) -> JsonObject | None:
        if not self._has_logprobs:
            return None
        lists, echo = CompletionLogprobs(self._codec), self._echo(index)
        for event in events:
            if echo is not None and event.prompt_logprobs is not None:
                lists.add_prompt(echo, event.prompt_logprobs)
            lists.add(event.logprobs, len(self._echo_text(index)))
        return lists.body()

    def _choice(
        self, index: int, text: str, logprobs: JsonObject | None, finish_reason: FinishReason | None
    ) -> JsonObject:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


@router.post("/v1/completions", response_model=None, responses=STREAMED)
async def create_completion(
    request: Request, body: Annotated[CompletionBody, JsonBody(CompletionBody)], service: ServiceDep
) -> Response:
    model = await service.accepting_model(body.model, body.adapters, body.routing)
    service.unknown_fields.note(body.model_extra or ())
    if body.echo and model.engine.is_encoder_decoder:
        raise InvalidRequestError(
            "This model is an encoder-decoder, which answers prompts instead of continuing them: leave out 'echo'.",
            "echo",
        )
    prompts = await asyncio.to_thread(prompts_of, body, model)
    # The text of a prompt that was cut is that of the tokens that are left.
    written = body.prompt if body.truncate_prompt_tokens is None else prompts
    echoes = await asyncio.to_thread(echoes_of, written, prompts, model.codec) if body.echo else None
    bad_words = await asyncio.to_thread(bad_word_ids, body.bad_words, model.codec) if body.bad_words else frozenset()
    spec = await asyncio.to_thread(lambda: body.grammar_spec)
    service.unenforced.note([] if spec is None else await asyncio.to_thread(lambda: body.unenforced))
    grammar = None if spec is None else await model.grammar_compiler.compile(spec)
    submitting = partial(
        submit,
        body=body,
        prompts=prompts,
        id_prefix="cmpl-",
        prompt_field="prompt",
        grammar=grammar,
        muted=MutedTokens(sequences=bad_words),
    )
    generation = await submit_to(request, model, body, lambda: prompts, "prompt", submitting)
    return await answer(request, CompletionEncoder(generation, model.codec, body, echoes), stream=body.stream)


def token_ids(prompts: Sequence[Prompt], codec: TextCodec) -> list[list[int]]:
    return [codec.encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]


def prompts_of(body: CompletionBody, model: LoadedModel) -> list[list[int]]:
    """Encode the prompts, or their last tokens; may block."""
    max_model_len = model.engine.max_model_len
    limit = prompt_limit(body, max_model_len)
    if limit is None:
        return token_ids(body.prompt, model.codec)
    return [
        last_tokens(prompt, limit, max_model_len, model.codec) if isinstance(prompt, str) else prompt[-limit:]
        for prompt in body.prompt
    ]


def echoes_of(prompts: Sequence[Prompt], ids: Sequence[Sequence[int]], codec: TextCodec) -> list[Echo]:
    return [Echo.of(prompt, token_ids, codec) for prompt, token_ids in zip(prompts, ids, strict=True)]
