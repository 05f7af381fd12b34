"""``/score`` and ``/rerank``, as vLLM's for models that embed: the cosine of the embeddings of two texts."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from server.api.core.bodies.translation import translate_errors
from server.api.core.replies.usage import expert_usage
from server.api.core.requests.disconnect import unless_client_leaves
from server.api.core.requests.embedding import Embedding
from server.api.core.requests.loaded_model import LoadedModel
from server.api.core.service.body import JsonBody
from server.api.core.service.dependencies import ServiceDep
from server.api.core.service.guard import UserDep
from server.api.core.service.service import Service
from server.api.openai.embeddings import check_embeds, encode_inputs, unit
from server.api.openai.fields import Prompt
from server.api.openai.scoring_bodies import RerankBody, ScoreBody, ScoringBody
from server.engine.interface import JsonObject, TokenEvent

CHARACTERS_PER_TOKEN = 8  # at most these of a text that is cut are tokenized

router = APIRouter(tags=["scoring"], dependencies=[UserDep])


@router.post("/score")
@router.post("/v1/score")
async def create_score(
    request: Request, body: Annotated[ScoreBody, JsonBody(ScoreBody)], service: ServiceDep
) -> JSONResponse:
    (first, queries), (second, documents) = body.sides()
    scored = await score(request, service, body, (first, second), (queries, documents))
    return JSONResponse(
        {
            "id": scored.id,
            "object": "list",
            "created": int(time.time()),
            "model": scored.model,
            "data": [{"index": index, "object": "score", "score": each} for index, each in enumerate(scored.scores)],
            "usage": scored.usage,
        }
    )


@router.post("/rerank")
@router.post("/v1/rerank")
@router.post("/v2/rerank")
async def rerank(
    request: Request, body: Annotated[RerankBody, JsonBody(RerankBody)], service: ServiceDep
) -> JSONResponse:
    scored = await score(request, service, body, ("query", "documents"), ([body.query], body.documents))
    best = sorted(range(len(body.documents)), key=lambda index: scored.scores[index], reverse=True)
    results = [
        {
            "index": index,
            "document": {"text": body.documents[index], "multi_modal": None},
            "relevance_score": scored.scores[index],
        }
        for index in best[: body.top_n or None]
    ]
    return JSONResponse(
        {
            "id": scored.id,
            "model": scored.model,
            "usage": scored.usage,
            "results": results,
        }
    )


@dataclass(frozen=True)
class Scored:
    """The score of each document, and what the request has cost."""

    id: str
    model: str
    scores: Sequence[float]
    usage: JsonObject


async def score(
    request: Request,
    service: Service,
    body: ScoringBody,
    names: tuple[str, str],
    texts: tuple[Sequence[str], Sequence[str]],
) -> Scored:
    """Score each document against its query; a single query goes with every document.

    Args:
        names: the fields of the queries and of the documents.
        texts: the queries and the documents; each text is embedded once.

    Raises:
        APIError: the model gives no embeddings, or a text does not fit it.
        EngineError: the engine does not take a text, or fails.

    """
    model = await service.accepting_model(body.model, body.adapters, task="embed")
    service.unknown_fields.note(body.model_extra or ())
    check_embeds(model)
    prompts: list[list[int]] = []
    limits = (body.max_tokens_per_query, body.max_tokens_per_doc)
    for name, side, limit in zip(names, texts, limits, strict=True):
        with translate_errors({"input": name}):
            max_tokens = body.max_tokens(limit, model.engine.max_model_len)
            prompts += await asyncio.to_thread(encode_side, side, model, max_tokens, body.truncation_side)
    embedding = request.state.work = Embedding(
        model, prompts, body.pooling, priority=body.priority, timeout=body.timeout, id_prefix="score-"
    )
    with translate_errors({"input": names[1]}):
        events = await unless_client_leaves(request.receive, embedding.events())
    scores = await asyncio.to_thread(cosines, events, len(texts[0]))
    embedding.release()
    num_tokens = embedding.num_prompt_tokens
    usage = {
        "prompt_tokens": num_tokens,
        "total_tokens": num_tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
        "greenroom": expert_usage(embedding.expert_usage),
    }
    return Scored(embedding.id, embedding.model, scores, usage)


def encode_side(texts: Sequence[Prompt], model: LoadedModel, max_tokens: int | None, cut: str) -> list[list[int]]:
    """Tokenize each text, and cut it, or what are tokens already, on the side ``cut``; may block.

    Args:
        max_tokens: tokens to keep of each text; None if it is not cut.

    Raises:
        ContextLengthError: one is longer than the model's context.
        InvalidRequestError: one has no tokens.

    """
    if max_tokens is None:
        return encode_inputs(texts, model)
    num_characters = min(max_tokens, model.engine.max_model_len) * CHARACTERS_PER_TOKEN
    if cut == "left":
        return encode_inputs([text[-num_characters:] for text in texts], model, slice(-max_tokens, None))
    return encode_inputs([text[:num_characters] for text in texts], model, slice(max_tokens))


def cosines(events: Sequence[TokenEvent], num_queries: int) -> list[float]:
    """Return the cosine of each document and its query, from the events of all queries and then all documents."""
    vectors = np.stack([unit(event.embedding) for event in events if event.embedding is not None])
    queries, documents = np.split(vectors.astype(np.float64), [num_queries])  # (texts, hidden)
    products: list[float] = np.clip((queries * documents).sum(axis=1), -1, 1).tolist()
    return products
