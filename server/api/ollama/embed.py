"""``/api/embed``, and ``/api/embeddings``, which it has replaced: vectors of texts."""

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import Field

from server.api.core.bodies.fields import MAX_INT32, Text
from server.api.core.bodies.translation import translate_errors
from server.api.core.json_text.encoding import encode_json
from server.api.core.replies.usage import expert_usage
from server.api.core.requests.disconnect import unless_client_leaves
from server.api.core.requests.embedding import Embedding
from server.api.core.requests.loaded_model import LoadedModel
from server.api.core.service.dependencies import ServiceDep
from server.api.core.service.guard import UserDep
from server.api.ollama.body import OllamaBody, RequestBody
from server.api.ollama.errors import ERRORS, OllamaRoute
from server.api.ollama.model_names import served_name
from server.api.ollama.reply_encoder import nanoseconds
from server.api.openai.embeddings import EmbeddingBody, check, encode_inputs, one_by_one, unit
from server.engine.interface import PromptTooLongError, TokenEvent

CHARACTERS_PER_TOKEN = 8  # characters kept per token of a text that is too long

router = APIRouter(tags=["ollama"], dependencies=[UserDep], route_class=OllamaRoute, responses=ERRORS)


class EmbedRequest(RequestBody):
    """One or more texts; without any, the model is only to be loaded."""

    input: Text | list[Text] = Field([])
    truncate: bool = True
    dimensions: int | None = Field(None, ge=1, le=MAX_INT32)
    options: Any = None  # without effect, because nothing is sampled

    def for_embedding(self, name: str | None) -> EmbeddingBody:
        """Translate the request.

        Raises:
            ValidationError: the inputs are not valid.

        """
        return EmbeddingBody.model_validate({"model": name, "input": self.input, "dimensions": self.dimensions})


class EmbeddingsRequest(RequestBody):
    """One text; if it is empty, the model is only to be loaded."""

    prompt: Text = ""
    options: Any = None


@router.post("/api/embed", response_model=None)
async def embed(
    request: Request, body: Annotated[EmbedRequest, OllamaBody(EmbedRequest)], service: ServiceDep
) -> Response:
    started_at = time.monotonic()
    model = await service.accepting_model(served_name(service, body.model), body.adapters, task="embed")
    body.note_ignored(service)
    name = body.model or model.name
    if not body.input:
        return JSONResponse({"model": name, "embeddings": []})
    with translate_errors({}):
        asked = body.for_embedding(model.name)
        embedding, vectors = await embedded(request, asked, model, truncates=body.truncate)
    counts = {
        "total_duration": nanoseconds(time.monotonic() - started_at),
        "load_duration": 0,
        "prompt_eval_count": embedding.num_prompt_tokens,
        "greenroom": expert_usage(embedding.expert_usage),
    }
    first = f'{encode_json({"model": name})[:-1]},"embeddings":['
    return in_parts([first, *vectors, f"],{encode_json(counts)[1:]}"], embedding)


@router.post("/api/embeddings", response_model=None)
async def embeddings(
    request: Request, body: Annotated[EmbeddingsRequest, OllamaBody(EmbeddingsRequest)], service: ServiceDep
) -> Response:
    model = await service.accepting_model(served_name(service, body.model), body.adapters, task="embed")
    body.note_ignored(service)
    if not body.prompt:
        return JSONResponse({"embedding": []})
    with translate_errors({"input": "prompt"}):
        asked = EmbeddingBody.model_validate({"input": body.prompt})
        embedding, vectors = await embedded(request, asked, model, truncates=True)
    return in_parts(['{"embedding":', *vectors, "}"], embedding)


async def embedded(
    request: Request, body: EmbeddingBody, model: LoadedModel, *, truncates: bool
) -> tuple[Embedding, list[str]]:
    """Compute the vector of each input, and return them as the members of a list in JSON.

    Raises:
        APIError: the model gives no embeddings, or does not take an input.
        EngineError: an input failed.

    """
    check(body, model)
    prompts = await asyncio.to_thread(_encode, body, model, truncates=truncates)
    embedding = request.state.work = Embedding(model, prompts, body.pooling)
    events = await unless_client_leaves(request.receive, embedding.events())
    return embedding, await asyncio.to_thread(_vectors, events, body.dimensions)


def in_parts(parts: Sequence[str], embedding: Embedding) -> Response:
    """Return a response in JSON whose parts are sent one by one; then the memory of the vectors is released."""
    encoded = [part.encode() for part in parts]
    length = {"Content-Length": str(sum(map(len, encoded)))}
    return StreamingResponse(one_by_one(encoded, embedding), headers=length, media_type="application/json")


def _encode(body: EmbeddingBody, model: LoadedModel, *, truncates: bool) -> list[list[int]]:
    """Tokenize each input, cut to the model's context if ``truncates``; may block.

    Raises:
        ContextLengthError: one is longer than the model's context.
        InvalidRequestError: one has no tokens.

    """
    inputs = [_cut(text, model) for text in body.input if isinstance(text, str)] if truncates else body.input
    return encode_inputs(inputs, model)


def _cut(text: str, model: LoadedModel) -> list[int]:
    limit = model.engine.max_model_len
    try:
        return model.codec.encode(text)[:limit]
    except PromptTooLongError:
        return model.codec.encode(text[: limit * CHARACTERS_PER_TOKEN])[:limit]


def _vectors(events: Sequence[TokenEvent], dimensions: int | None) -> list[str]:
    """Encode each vector: no call holds the interpreter's lock for long."""
    vectors: list[str] = []
    for event in events:
        assert event.embedding is not None
        vector = encode_json(unit(event.embedding[:dimensions]).tolist())
        vectors.append(f",{vector}" if vectors else vector)
    return vectors
