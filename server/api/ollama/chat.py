"""``/api/chat`` and ``/api/generate``: the next message of a conversation, and the answer to a prompt."""

import asyncio
import time
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from server.api.core.bodies.translation import translate_errors
from server.api.core.errors.api_errors import InvalidRequestError
from server.api.core.errors.validation import quote
from server.api.core.replies.chat_turn import ChatTurn, PlainText
from server.api.core.replies.reply import answer
from server.api.core.requests.cost import OBJECTS_FORM
from server.api.core.requests.loaded_model import LoadedModel
from server.api.core.service.dependencies import ServiceDep
from server.api.core.service.guard import UserDep
from server.api.core.service.openapi import JSON_STREAMED
from server.api.core.service.service import Service
from server.api.ollama.body import OllamaBody
from server.api.ollama.capabilities import THINKING, capabilities
from server.api.ollama.errors import ERRORS, OllamaRoute
from server.api.ollama.generation_bodies import (
    NAMES,
    NAMES_OF_PROMPTS,
    ChatRequest,
    GenerateRequest,
    ReplyRequest,
)
from server.api.ollama.model_names import served_name
from server.api.ollama.reply_encoder import ChatEncoder, GenerateEncoder, loaded
from server.api.openai.bodies import CompletionBody
from server.api.openai.chat import begin_chat
from server.api.openai.completions import token_ids
from server.api.openai.ignored_fields import note_ignored
from server.api.openai.submit import admit, submit, submit_to

ID_PREFIX = "ollama-"

router = APIRouter(tags=["ollama"], dependencies=[UserDep], route_class=OllamaRoute, responses=ERRORS)


@router.post("/api/chat", response_model=None, responses=JSON_STREAMED)
async def chat(
    request: Request, body: Annotated[ChatRequest, OllamaBody(ChatRequest)], service: ServiceDep
) -> Response:
    started_at = time.monotonic()
    model = await asked_model(service, body)
    if not body.messages:
        return JSONResponse(loaded(body.model or model.name, ChatEncoder))
    with translate_errors(NAMES):
        translated = await asyncio.to_thread(body.for_chat, served_name(service, body.model))
        turn = await begin_chat(request, service, translated, ID_PREFIX)
    encoder = ChatEncoder(turn, written_name(body, model, turn), started_at, has_logprobs=body.logprobs)
    return await answer(request, encoder, stream=body.stream)


@router.post("/api/generate", response_model=None, responses=JSON_STREAMED)
async def generate(
    request: Request, body: Annotated[GenerateRequest, OllamaBody(GenerateRequest)], service: ServiceDep
) -> Response:
    started_at = time.monotonic()
    model = await asked_model(service, body)
    if not body.prompt and not body.images:
        return JSONResponse(loaded(body.model or model.name, GenerateEncoder))
    name = served_name(service, body.model)
    with translate_errors(NAMES_OF_PROMPTS):
        if body.raw:
            completion = body.for_completion(name)
            note_ignored(completion, service)
            service.unenforced.note(await asyncio.to_thread(lambda: completion.unenforced))
            turn = await begin_completion(request, model, completion)
        else:
            turn = await begin_chat(request, service, await asyncio.to_thread(body.for_chat, name), ID_PREFIX)
    encoder = GenerateEncoder(turn, written_name(body, model, turn), started_at, has_logprobs=body.logprobs)
    return await answer(request, encoder, stream=body.stream)


async def asked_model(service: Service, body: ReplyRequest) -> LoadedModel:
    """Return the model that a request names.

    Raises:
        APIError: it can't answer now, there is no such model, or it does not think.

    """
    model = await service.accepting_model(served_name(service, body.model), body.adapters, body.routing)
    body.note_ignored(service)
    if body.think and THINKING not in await asyncio.to_thread(capabilities, model):
        raise InvalidRequestError(
            f"The model {quote(model.name)} does not support thinking: leave out 'think'.", "think"
        )
    return model


def written_name(body: ReplyRequest, model: LoadedModel, turn: ChatTurn) -> str:
    """Return the model's name as the client wrote it, or that of the model which a router has chosen."""
    return turn.generation.model if model.is_auto else body.model or model.name


async def begin_completion(request: Request, model: LoadedModel, body: CompletionBody) -> ChatTurn:
    """Submit a prompt to the engine as it is, without the chat template.

    Raises:
        APIError: the server does not take the prompt, or not now.
        EngineError: the engine does not take it.

    """
    prompts = await asyncio.to_thread(token_ids, body.prompt, model.codec)
    spec = body.grammar_spec
    grammar = None if spec is None else await model.grammar_compiler.compile(spec)
    admitted = await admit(request, model, body, prompts=prompts, prompt_field="prompt", form=OBJECTS_FORM)
    submitting = partial(
        submit, body=body, admitted=admitted, id_prefix=ID_PREFIX, prompt_field="prompt", grammar=grammar
    )
    generation = await submit_to(
        request, model, body, admitted=admitted, texts=lambda: prompts, field="prompt", submitting=submitting
    )
    return ChatTurn(generation, model.codec, [PlainText()])
