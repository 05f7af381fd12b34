"""``/v1/classify`` and ``/classify``, as vLLM's: the probabilities of a model's labels for texts or images."""

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import AliasChoices, Field

from server.api.core.replies.usage import expert_usage
from server.api.core.requests.disconnect import unless_client_leaves
from server.api.core.requests.embedding import Embedding
from server.api.core.requests.loaded_model import LoadedModel
from server.api.core.service.body import JsonBody
from server.api.core.service.dependencies import ServiceDep
from server.api.core.service.guard import UserDep
from server.api.openai.embeddings import InputsBody, encode_prompts
from server.api.openai.scoring import encode_side
from server.api.openai.scoring_bodies import TokensToKeep
from server.engine.interface import ChatPrompt, JsonObject, TokenEvent

router = APIRouter(tags=["classify"], dependencies=[UserDep])


class ClassifyBody(InputsBody):
    """vLLM's body."""

    truncate_prompt_tokens: TokensToKeep | None = None  # -1: the context of the model
    truncation_side: Literal["left", "right"] = "right"  # "right" keeps the first tokens
    use_activation: bool = Field(True, validation_alias=AliasChoices("use_activation", "activation"))


@router.post("/classify")
@router.post("/v1/classify")
async def classify(
    request: Request, body: Annotated[ClassifyBody, JsonBody(ClassifyBody)], service: ServiceDep
) -> JSONResponse:
    model = await service.accepting_model(body.model, task="classify")
    service.unknown_fields.note(body.model_extra or ())
    prompts = await asyncio.to_thread(prompts_of, body, model)
    work = request.state.work = Embedding(
        model, prompts, "classify", priority=body.priority, timeout=body.timeout, id_prefix="classify-"
    )
    events = await unless_client_leaves(request.receive, work.events())
    labels = model.engine.labels
    data = [choice(event, index, labels, has_activation=body.use_activation) for index, event in enumerate(events)]
    work.release()
    num_tokens = work.num_prompt_tokens
    return JSONResponse(
        {
            "id": work.id,
            "object": "list",
            "created": int(time.time()),
            "model": work.model,
            "data": data,
            "labels": labels,
            "usage": {
                "prompt_tokens": num_tokens,
                "total_tokens": num_tokens,
                "completion_tokens": 0,
                "greenroom": expert_usage(work.expert_usage),
            },
        }
    )


def prompts_of(body: ClassifyBody, model: LoadedModel) -> Sequence[Sequence[int] | ChatPrompt]:
    """Turn each input into a prompt, cut if the request wants it; may block. Errors are those of ``encode_prompts``."""
    limit = body.truncate_prompt_tokens
    if limit is None or model.codec.reads_images:
        return encode_prompts(body.input, model)
    return encode_side(body.input, model, model.engine.max_model_len if limit < 0 else limit, body.truncation_side)


def choice(event: TokenEvent, index: int, labels: tuple[str, ...], *, has_activation: bool) -> JsonObject:
    """Return the item of one input: its label, and the probabilities of all labels, or their logits."""
    assert event.embedding is not None
    logits = event.embedding.astype(np.float64)
    return {
        "index": index,
        "label": labels[int(logits.argmax())],
        "probs": (softmax(logits) if has_activation else logits).tolist(),
        "num_classes": len(labels),
    }


def softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return probabilities that sum to 1."""
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum())
