"""``/v1/completions``: plain text or tokens, continued."""

import asyncio
from collections.abc import Sequence

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.api.dependencies import ServiceDep
from server.api.openai.answer import answer
from server.api.openai.fields import Prompt
from server.api.openai.generation import submit
from server.api.openai.replies import JsonObject
from server.api.openai.schemas import CompletionBody
from server.engine.request import FinishReason, TextCodec, TokenEvent

router = APIRouter(tags=["completions"])


class CompletionStyle:
    """A choice is a text, whole or in pieces."""

    object = "text_completion"
    chunk_object = "text_completion"

    def choice(self, index: int, text: str, finish_reason: FinishReason | None) -> JsonObject:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}

    def opening(self, _index: int) -> list[JsonObject]:
        return []

    def delta(self, index: int, event: TokenEvent) -> list[JsonObject]:
        if not event.text and event.finish_reason is None:
            return []
        return [self.choice(index, event.text, event.finish_reason)]


@router.post("/v1/completions", response_model=None)
async def create_completion(request: Request, body: CompletionBody, service: ServiceDep) -> Response:
    model = service.accepting_model(body.model)
    service.unknown_fields.note(body.model_extra or ())
    prompts = await asyncio.to_thread(token_ids, body.prompt, model.codec)
    generation = submit(model, body, prompts, "cmpl", "prompt")
    return await answer(request, body, generation, CompletionStyle())


def token_ids(prompts: Sequence[Prompt], codec: TextCodec) -> list[list[int]]:
    return [codec.encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
