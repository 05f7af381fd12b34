"""``/tokenize`` and ``/detokenize``, as in vLLM."""

import asyncio
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from server.api.core.bodies.fields import MAX_INT32, Text
from server.api.core.json_text.encoding import encode_json
from server.api.core.requests.loaded_model import LoadedModel
from server.api.core.service.body import JsonBody
from server.api.core.service.dependencies import ServiceDep
from server.api.core.service.guard import UserDep
from server.api.openai.bodies import ChatBody
from server.api.openai.messages import Message
from server.api.openai.turn_plan import encode

MAX_TOKENS = 1 << 17  # tokens of a detokenize request
ITEMS_PER_CALL = 4096  # items that one call encodes: the encoder holds the interpreter's lock

router = APIRouter(tags=["tokens"], dependencies=[UserDep])


class TokenizeBody(ChatBody):
    """A text, or a chat with all fields of its body; sampling parameters have no effect."""

    messages: list[Message] = Field([], fail_fast=True)
    prompt: Text | None = Field(None, validate_default=True)
    add_special_tokens: bool | None = None  # None: True for a text
    return_token_strs: bool = False

    @field_validator("prompt")
    @classmethod
    def need_one(cls, prompt: str | None, info: ValidationInfo) -> str | None:
        if (prompt is None) == (not info.data.get("messages")):
            raise ValueError("or 'messages' is required, but not both")
        return prompt

    @field_validator("add_special_tokens")
    @classmethod
    def need_text(cls, adds: bool, info: ValidationInfo) -> bool:
        if adds and info.data.get("messages"):
            raise ValueError("is allowed only with 'prompt': a chat template adds its special tokens itself")
        return adds


class DetokenizeBody(BaseModel):
    """Token ids of one text."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: Text | None = None
    tokens: list[Annotated[int, Field(ge=0, le=MAX_INT32)]] = Field(fail_fast=True)

    @field_validator("tokens")
    @classmethod
    def limit(cls, tokens: list[int]) -> list[int]:
        if len(tokens) > MAX_TOKENS:
            raise ValueError(
                f"must hold no more than {MAX_TOKENS} token ids, but holds {len(tokens)}: send them in parts"
            )
        return tokens


@router.post("/tokenize", response_model=None)
async def tokenize(body: Annotated[TokenizeBody, JsonBody(TokenizeBody)], service: ServiceDep) -> Response:
    await service.load_missing(body.model)
    model = service.loaded_model(body.model)
    service.unknown_fields.note(body.model_extra or ())
    return Response(await asyncio.to_thread(_tokenized, body, model), media_type="application/json")


@router.post("/detokenize", response_model=None)
async def detokenize(body: Annotated[DetokenizeBody, JsonBody(DetokenizeBody)], service: ServiceDep) -> Response:
    await service.load_missing(body.model)
    model = service.loaded_model(body.model)
    service.unknown_fields.note(body.model_extra or ())
    return Response(await asyncio.to_thread(_detokenized, body, model), media_type="application/json")


def _tokenized(body: TokenizeBody, model: LoadedModel) -> bytes:
    """Encode the response of ``/tokenize``; may block.

    Raises:
        RequestRefusedError: the text or the conversation can't be tokenized.

    """
    if body.prompt is None:
        tokens = encode(body, model.codec).token_ids
    else:
        tokens = model.codec.encode(body.prompt, add_special_tokens=body.add_special_tokens is not False)
    names = _list(model.codec.token_names(tokens)) if body.return_token_strs else "null"
    counts = encode_json({"count": len(tokens), "max_model_len": model.engine.max_model_len})
    return f'{counts[:-1]},"tokens":{_list(tokens)},"token_strs":{names}}}'.encode()


def _detokenized(body: DetokenizeBody, model: LoadedModel) -> bytes:
    """Encode the response of ``/detokenize``; may block.

    Raises:
        RequestRefusedError: the model has no such token.

    """
    return encode_json({"prompt": model.codec.decode(body.tokens)}).encode()


def _list(items: Sequence[int] | Sequence[str]) -> str:
    pieces = (
        encode_json(list(items[start : start + ITEMS_PER_CALL]))[1:-1] for start in range(0, len(items), ITEMS_PER_CALL)
    )
    return f"[{','.join(pieces)}]"
