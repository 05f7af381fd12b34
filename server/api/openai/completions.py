"""``/v1/completions``: the continuation of texts or lists of tokens."""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from io import StringIO
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.api.core.errors.api_errors import InvalidRequestError
from server.api.core.json_text.parts import JsonList
from server.api.core.replies.reply import answer
from server.api.core.requests.cost import COMPLETION_FORM
from server.api.core.requests.generation import Generation
from server.api.core.requests.loaded_model import LoadedModel
from server.api.core.service.body import JsonBody
from server.api.core.service.dependencies import ServiceDep
from server.api.core.service.guard import UserDep
from server.api.core.service.openapi import STREAMED
from server.api.openai.bodies import CompletionBody
from server.api.openai.chunk_encoder import CHARACTER_BYTES, ChoiceBuilder, ChunkEncoder, TextChoice
from server.api.openai.fields import Prompt
from server.api.openai.ignored_fields import note_ignored
from server.api.openai.logprobs import CompletionLogprobs, Echo, prompt_logprobs
from server.api.openai.muted_tokens import MutedTokens
from server.api.openai.prompt_tokens import bad_word_ids, last_tokens, prompt_limit
from server.api.openai.submit import admit, submit, submit_to
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
        self._num_echoed = [0] * len(generation.streams)  # tokens of the prompts, by choice

    def builder(self, index: int) -> "CompletionBuilder":
        more = self._prompt_token_ids(index)
        return CompletionBuilder(
            index,
            self._codec,
            self._echo(index),
            more,
            has_logprobs=self._has_logprobs,
            has_prompt_logprobs=self._has_prompt_logprobs,
            has_token_ids=self._has_token_ids,
        )

    def start_choices(self, index: int) -> list[JsonObject]:
        text = "" if self._has_logprobs else self._echo_text(index)
        if not (text or self._has_token_ids):
            return []
        return [_choice(index, text, None, None) | self._prompt_token_ids(index) | self._token_ids()]

    def text_choice(self, index: int, text: TextChoice) -> JsonObject:
        return _choice(index, text.text, None, None)

    def chunk_choices(self, index: int, event: TokenEvent) -> Sequence[JsonObject | TextChoice]:
        text, logprobs = event.text, None
        if self._is_plain and not self._has_logprobs and event.finish_reason is None:
            return (TextChoice("text", text),) if text else ()
        if self._has_logprobs:
            lists = CompletionLogprobs(self._codec)
            text = self._echo_now(index, event, lists) + text
            lists.add(event.logprobs, len(self._echo_text(index)))
            logprobs = lists.body() if lists.nbytes else None
        if not (text or event.logprobs or event.finish_reason is not None or self._has_token_ids):
            return []
        return [_choice(index, text, logprobs, event.finish_reason) | self._token_ids(event)]

    def _echo(self, index: int) -> Echo | None:
        return None if self._echoes is None else self._echoes[index // self._num_choices]

    def _echo_text(self, index: int) -> str:
        echo = self._echo(index)
        return "" if echo is None else echo.text

    def _echo_now(self, index: int, event: TokenEvent, lists: CompletionLogprobs) -> str:
        """Add the tokens of the prompt that come with an event to lists, and return their text."""
        echo, logprobs = self._echo(index), event.prompt_logprobs
        if echo is None or logprobs is None:
            return ""
        start = self._num_echoed[index]
        if start == 0:
            lists.add_first(echo)
        end = max(1, start) + len(logprobs)
        lists.add_prompt(echo, logprobs, max(1, start))
        self._num_echoed[index] = end
        # Some tokens have a part of a character, and the offset of the character's begin.
        return echo.text[echo.offsets[start] if start else 0 : echo.offsets[end] if end < len(echo.offsets) else None]


class CompletionBuilder(ChoiceBuilder):
    """Builds a choice of a complete reply.

    Args:
        echo: the prompt that precedes the completion.
        more: further members.

    """

    def __init__(
        self,
        index: int,
        codec: TextCodec,
        echo: Echo | None,
        more: JsonObject,
        *,
        has_logprobs: bool,
        has_prompt_logprobs: bool,
        has_token_ids: bool,
    ) -> None:
        super().__init__(has_token_ids=has_token_ids)
        self._index, self._codec, self._echo, self._more = index, codec, echo, more
        self._text, self._num_characters = StringIO(), 0
        self._logprobs = CompletionLogprobs(codec) if has_logprobs else None
        self._prompt_logprobs = JsonList([None]) if has_prompt_logprobs else None
        self._finish_reason: FinishReason | None = None
        if echo is not None:
            self._write(echo.text)

    def add(self, event: TokenEvent) -> None:
        super().add(event)
        self._write(event.text)
        self._finish_reason = event.finish_reason
        if self._prompt_logprobs is not None and event.prompt_logprobs is not None:
            self._prompt_logprobs = prompt_logprobs(self._codec, event.prompt_logprobs)
        if self._logprobs is None:
            return
        if self._echo is not None and event.prompt_logprobs is not None:
            self._logprobs.add_first(self._echo)
            self._logprobs.add_prompt(self._echo, event.prompt_logprobs)
        self._logprobs.add(event.logprobs, 0 if self._echo is None else len(self._echo.text))

    def choice(self) -> JsonObject:
        logprobs = None if self._logprobs is None else self._logprobs.body()
        choice = _choice(self._index, self._text.getvalue(), logprobs, self._finish_reason)
        more = {} if self._prompt_logprobs is None else {"prompt_logprobs": self._prompt_logprobs}
        return choice | more | self._more | self.token_ids

    @property
    def nbytes(self) -> int:
        lists = (self._logprobs, self._prompt_logprobs)
        return super().nbytes + CHARACTER_BYTES * self._num_characters + sum(each.nbytes for each in lists if each)

    def _write(self, text: str) -> None:
        self._text.write(text)
        self._num_characters += len(text)


def _choice(
    index: int, text: str, logprobs: Mapping[str, Any] | None, finish_reason: FinishReason | None
) -> JsonObject:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


@router.post("/v1/completions", response_model=None, responses=STREAMED)
async def create_completion(
    request: Request, body: Annotated[CompletionBody, JsonBody(CompletionBody)], service: ServiceDep
) -> Response:
    model = await service.accepting_model(body.model, body.adapters, body.routing)
    note_ignored(body, service)
    if body.echo and model.engine.is_encoder_decoder:
        raise InvalidRequestError(
            "This model is an encoder-decoder, which answers prompts instead of continuing them: leave out 'echo'.",
            "echo",
        )
    prompts, spec = await asyncio.to_thread(lambda: (prompts_of(body, model), body.grammar_spec))
    # The text of a prompt that was cut is that of the tokens that are left.
    written = body.prompt if body.truncate_prompt_tokens is None else prompts
    echoes = await asyncio.to_thread(echoes_of, written, prompts, model.codec) if body.echo else None
    bad_words = await asyncio.to_thread(bad_word_ids, body.bad_words, model.codec) if body.bad_words else frozenset()
    service.unenforced.note([] if spec is None else await asyncio.to_thread(lambda: body.unenforced))
    grammar = None if spec is None else await model.grammar_compiler.compile(spec)
    admitted = await admit(request, model, body, prompts=prompts, prompt_field="prompt", form=COMPLETION_FORM)
    submitting = partial(
        submit,
        body=body,
        admitted=admitted,
        id_prefix="cmpl-",
        prompt_field="prompt",
        grammar=grammar,
        muted=MutedTokens(sequences=bad_words),
    )
    generation = await submit_to(
        request, model, body, admitted=admitted, texts=lambda: prompts, field="prompt", submitting=submitting
    )
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
