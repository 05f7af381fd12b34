"""``/v1/embeddings``: texts or tokens, each made a vector of."""

import asyncio
import time
from base64 import b64encode
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from server.api.auth import UserDep
from server.api.body import BodyRoute
from server.api.dependencies import ServiceDep
from server.api.disconnect import unless_client_leaves
from server.api.errors import ContextLengthError, InvalidRequestError
from server.api.openai.completions import token_ids
from server.api.openai.fields import MAX_INT32, Prompt, Prompts, Text
from server.api.openai.replies import encode_json, expert_usage
from server.api.service import LoadedModel
from server.engine.request import (
    DeadlineExceededError,
    ExpertUsage,
    GenerationRequest,
    Pooling,
    PromptTooLongError,
    RequestRefusedError,
    SamplingParams,
    TokenEvent,
    TokenStream,
)

MAX_INPUTS = 2048  # of a request, as OpenAI's
MAX_AT_ONCE = 32  # inputs of a request that the engine knows of, so that one request does not fill its queue
FLOAT32 = np.dtype("<f4")

Vector = npt.NDArray[np.float32]

router = APIRouter(tags=["embeddings"], dependencies=[UserDep], route_class=BodyRoute)


class EmbeddingBody(BaseModel):
    """OpenAI's, with the way of pooling; null is the same as leaving a field out."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    model: Text | None = None
    input: Prompts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, le=MAX_INT32)
    pooling: Pooling = "mean"
    user: Any = None
    priority: int = Field(0, ge=-MAX_INT32, le=MAX_INT32)
    timeout: float | None = Field(None, gt=0)  # seconds

    @model_validator(mode="before")
    @classmethod
    def leave_out_nulls(cls, body: object) -> object:
        return {name: value for name, value in body.items() if value is not None} if isinstance(body, dict) else body

    @field_validator("input")
    @classmethod
    def limit_inputs(cls, inputs: list[Prompt]) -> list[Prompt]:
        if len(inputs) > MAX_INPUTS:
            raise ValueError(f"must hold no more than {MAX_INPUTS} inputs, but holds {len(inputs)}: split the request")
        if not all(inputs):
            raise ValueError("must not hold an empty string or list")
        return inputs


@router.post("/v1/embeddings", response_model=None)
async def create_embeddings(request: Request, body: EmbeddingBody, service: ServiceDep) -> Response:
    model = service.accepting_model(body.model)
    service.unknown_fields.note(body.model_extra or ())
    check(body, model)
    prompts = await asyncio.to_thread(encode_inputs, body.input, model)
    embedding = request.state.work = Embedding(model, body, prompts)
    events = await unless_client_leaves(request.receive, embedding.events())
    pieces = await asyncio.to_thread(encode_reply, embedding, body, events)
    length = {"Content-Length": str(sum(map(len, pieces)))}
    return StreamingResponse(one_by_one(pieces), headers=length, media_type="application/json")


def check(body: EmbeddingBody, model: LoadedModel) -> None:
    """Refuse what the model can't give.

    Raises:
        InvalidRequestError: it has no such vectors.

    """
    hidden_size = model.engine.hidden_size
    if not hidden_size:
        raise InvalidRequestError("This model answers what its encoder reads, and gives no embeddings.", "model")
    if body.dimensions is not None and body.dimensions > hidden_size:
        raise InvalidRequestError(
            f"'dimensions' is {body.dimensions}, but this model's vectors have {hidden_size}.", "dimensions"
        )


def encode_inputs(inputs: Sequence[Prompt], model: LoadedModel) -> list[list[int]]:
    """The tokens of each input; may block.

    Raises:
        ContextLengthError: one is longer than the model's context.
        InvalidRequestError: one has no tokens.

    """
    try:
        prompts = token_ids(inputs, model.codec)
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


class Embedding:
    """A request's inputs on their way through the engine."""

    def __init__(self, model: LoadedModel, body: EmbeddingBody, prompts: Sequence[Sequence[int]]):
        self.id, self.model = f"embd-{uuid4().hex}", model.name
        self.num_prompt_tokens = sum(map(len, prompts))
        self.streams: list[TokenStream] = []  # of the inputs that the engine was told of
        self.expert_usage = ExpertUsage()  # of those that are done
        self._loaded, self._body, self._prompts = model, body, prompts
        self._started = time.monotonic()

    async def events(self) -> list[TokenEvent]:
        """The event of each prompt that holds its vector.

        Raises:
            EngineError: one of the prompts failed; the others are cancelled.

        """
        events: dict[int, TokenEvent] = {}
        left = iter(enumerate(self._prompts))

        async def work() -> None:
            for place, prompt in left:
                events[place] = await self._embed(place, prompt)

        workers = [asyncio.create_task(work()) for _ in range(min(MAX_AT_ONCE, len(self._prompts)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        return [events[place] for place in range(len(self._prompts))]

    async def _embed(self, place: int, prompt: Sequence[int]) -> TokenEvent:
        request = GenerationRequest(
            f"{self.id}-{place}",
            tuple(prompt),
            SamplingParams(max_tokens=0),
            self._body.priority,
            self._seconds_left(),
            keeps_stalls=self._loaded.keeps_stalls,
            pooling=self._body.pooling,
        )
        try:
            stream = self._loaded.engine.submit(request)
        except RequestRefusedError as error:
            raise RequestRefusedError(str(error), "input") from error
        self.streams.append(stream)
        try:
            event = [event async for event in stream][-1]
        except DeadlineExceededError as error:  # which speaks of what was left when its turn came
            raise DeadlineExceededError(f"the request was not done within {self._body.timeout:g} seconds") from error
        finally:
            stream.cancel()
        self.expert_usage += event.expert_usage or ExpertUsage()
        return event

    def _seconds_left(self) -> float | None:
        """Of the whole request's time; the engine ends what has none left."""
        seconds = self._body.timeout
        return None if seconds is None else seconds - (time.monotonic() - self._started)


async def one_by_one(pieces: Sequence[bytes]) -> AsyncGenerator[bytes, None]:
    """The pieces of a long reply, the next when the one before is on its way."""
    for piece in pieces:
        yield piece


def encode_reply(embedding: Embedding, body: EmbeddingBody, events: Sequence[TokenEvent]) -> list[bytes]:
    """OpenAI's form of it, a vector a piece, so that neither the interpreter's lock nor the event loop is held long."""
    pieces = [b'{"object":"list","data":[']
    for index, event in enumerate(events):
        assert event.embedding is not None
        vector = unit(event.embedding[: body.dimensions])
        written = (
            vector.tolist() if body.encoding_format == "float" else b64encode(vector.astype(FLOAT32).tobytes()).decode()
        )
        item = encode_json({"object": "embedding", "index": index, "embedding": written})
        pieces.append((item if index == 0 else f",{item}").encode())
    num_tokens = embedding.num_prompt_tokens
    usage = {
        "prompt_tokens": num_tokens,
        "total_tokens": num_tokens,
        "greenroom": expert_usage(embedding.expert_usage),
    }
    rest = encode_json({"model": embedding.model, "usage": usage})
    return [*pieces, f"],{rest[1:]}".encode()]


def unit(vector: Vector) -> Vector:
    """A vector of length 1 in the same direction; one of zeros stays."""
    length = float(np.linalg.norm(vector.astype(np.float64)))
    return vector if length == 0 else (vector / length).astype(np.float32)
