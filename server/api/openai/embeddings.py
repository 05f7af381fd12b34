"""``/v1/embeddings``: one vector for each text or list of tokens."""

import asyncio
from base64 import b64encode
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, field_validator

from server.api.core.bodies.fields import MAX_INT32, Text
from server.api.core.bodies.nulls import NullableBody
from server.api.core.choice.adapter_choice import AdapterChoices
from server.api.core.errors.api_errors import ContextLengthError, InvalidRequestError
from server.api.core.json_text.encoding import encode_json
from server.api.core.replies.usage import expert_usage
from server.api.core.requests.disconnect import unless_client_leaves
from server.api.core.requests.embedding import Embedding
from server.api.core.requests.loaded_model import LoadedModel
from server.api.core.service.body import JsonBody
from server.api.core.service.dependencies import ServiceDep
from server.api.core.service.guard import UserDep
from server.api.openai.completions import token_ids
from server.api.openai.content import image_part
from server.api.openai.fields import Prompt, Prompts
from server.engine.interface import ChatPrompt, PoolingOfHidden, PromptTooLongError, TokenEvent

MAX_INPUTS = 2048  # inputs of a request; OpenAI's limit
FLOAT32 = np.dtype("<f4")

Vector = npt.NDArray[np.float32]

router = APIRouter(tags=["embeddings"], dependencies=[UserDep])


class InputsBody(NullableBody, BaseModel):
    """Fields of a request for something of each input; null is the same as leaving a field out."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    model: Text | None = None
    input: Prompts
    user: Any = None
    priority: int = Field(0, ge=-MAX_INT32, le=MAX_INT32)
    timeout: float | None = Field(None, gt=0)  # seconds

    @field_validator("input")
    @classmethod
    def limit_inputs(cls, inputs: list[Prompt]) -> list[Prompt]:
        """Return the inputs of a request.

        Raises:
            ValueError: there are too many, or one is empty.

        """
        if len(inputs) > MAX_INPUTS:
            raise ValueError(f"must hold no more than {MAX_INPUTS} inputs, but holds {len(inputs)}: split the request")
        if not all(inputs):
            raise ValueError("must not hold an empty string or list")
        return inputs


class EmbeddingBody(InputsBody):
    """OpenAI's body, with the pooling method."""

    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, le=MAX_INT32)
    pooling: PoolingOfHidden = "mean"
    adapters: AdapterChoices = []


@router.post("/v1/embeddings", response_model=None)
async def create_embeddings(
    request: Request, body: Annotated[EmbeddingBody, JsonBody(EmbeddingBody)], service: ServiceDep
) -> Response:
    model = await service.accepting_model(body.model, body.adapters, task="embed")
    service.unknown_fields.note(body.model_extra or ())
    check(body, model)
    prompts = await asyncio.to_thread(encode_prompts, body.input, model)
    embedding = request.state.work = Embedding(
        model, prompts, body.pooling, priority=body.priority, timeout=body.timeout
    )
    events = await unless_client_leaves(request.receive, embedding.events())
    parts = await asyncio.to_thread(encode_reply, embedding, body, events)
    length = {"Content-Length": str(sum(map(len, parts)))}
    return StreamingResponse(one_by_one(parts, embedding), headers=length, media_type="application/json")


def check(body: EmbeddingBody, model: LoadedModel) -> None:
    """Refuse a request for vectors that the model does not have.

    Raises:
        InvalidRequestError: the model gives no embeddings, or shorter ones.

    """
    check_embeds(model)
    hidden_size = model.engine.hidden_size
    if body.dimensions is not None and body.dimensions > hidden_size:
        raise InvalidRequestError(
            f"'dimensions' is {body.dimensions}, but this model's vectors have {hidden_size}.", "dimensions"
        )


def check_embeds(model: LoadedModel) -> None:
    """Refuse a model that gives no embeddings.

    Raises:
        InvalidRequestError: it is one.

    """
    if not model.engine.hidden_size:
        raise InvalidRequestError(
            "This model is an encoder-decoder and gives no embeddings: use another model.", "model"
        )
    if model.is_auto:
        raise InvalidRequestError("'auto' chooses adapters for text only, not for embeddings: name a model.", "model")


def encode_inputs(inputs: Sequence[Prompt], model: LoadedModel, part: slice = slice(None)) -> list[list[int]]:
    """Tokenize each input; may block.

    Args:
        part: the tokens of each input to keep.

    Raises:
        ContextLengthError: one is longer than the model's context.
        InvalidRequestError: one has no tokens.

    """
    try:
        prompts = [tokens[part] for tokens in token_ids(inputs, model.codec)]
    except PromptTooLongError as error:
        raise ContextLengthError(str(error), "input") from error
    longest, limit = max(map(len, prompts)), model.engine.max_model_len
    if longest > limit:
        raise ContextLengthError(
            f"This model's maximum context length is {limit} tokens, but an input has {longest}: shorten it.", "input"
        )
    if not all(prompts):
        raise InvalidRequestError("An input of 'input' has no tokens.", "input")
    return prompts


def encode_prompts(inputs: Sequence[Prompt], model: LoadedModel) -> list[ChatPrompt]:
    """Turn each input into a prompt: text, token ids, or the data URL of an image if the model reads images; may block.

    Raises:
        ContextLengthError, InvalidRequestError: see ``encode_inputs``; or an image is not given as a data URL.
        RequestRefusedError: an image can't be read.
        RequestMemoryError: other requests hold the memory of the images.

    """
    if not model.codec.reads_images:
        return [ChatPrompt(tokens) for tokens in encode_inputs(inputs, model)]
    return [model.codec.encode_image(image_of(each)) for each in inputs]


def image_of(value: Prompt) -> bytes:
    """Return the image file of a data URL.

    Raises:
        InvalidRequestError: it is none.

    """
    if not isinstance(value, str):
        raise InvalidRequestError("'input' must hold images as data URLs (data:image/png;base64,...).", "input")
    try:
        part = image_part(value)
    except ValueError as error:
        raise InvalidRequestError(f"'input' {error}.", "input") from error
    return replace(part, field="input").decode()


async def one_by_one(parts: Sequence[bytes], embedding: Embedding) -> AsyncGenerator[bytes, None]:
    """Yield the parts of a long reply, each when the one before was sent; then release the memory of the vectors."""
    try:
        for part in parts:
            yield part
    finally:
        embedding.release()


def encode_reply(embedding: Embedding, body: EmbeddingBody, events: Sequence[TokenEvent]) -> list[bytes]:
    """Encode the reply, a part for each vector: no call holds the interpreter's lock or the event loop for long."""
    parts = [b'{"object":"list","data":[']
    for index, event in enumerate(events):
        assert event.embedding is not None
        vector = unit(event.embedding[: body.dimensions])
        written = (
            vector.tolist() if body.encoding_format == "float" else b64encode(vector.astype(FLOAT32).tobytes()).decode()
        )
        item = encode_json({"object": "embedding", "index": index, "embedding": written})
        parts.append((item if index == 0 else f",{item}").encode())
    num_tokens = embedding.num_prompt_tokens
    usage = {
        "prompt_tokens": num_tokens,
        "total_tokens": num_tokens,
        "greenroom": expert_usage(embedding.expert_usage),
    }
    rest = encode_json({"model": embedding.model, "usage": usage})
    return [*parts, f"],{rest[1:]}".encode()]


def unit(vector: Vector) -> Vector:
    """Scale a vector to length 1; zeros stay as they are."""
    length = float(np.linalg.norm(vector.astype(np.float64)))
    return vector if length == 0 else (vector / length).astype(np.float32)
