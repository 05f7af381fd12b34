"""``/v1/responses``: the response to a conversation, which may continue a stored one; and counting its tokens."""

import asyncio
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from server.api.core.auth import UserDep
from server.api.core.body import JsonBody
from server.api.core.dependencies import ServiceDep
from server.api.core.openapi import STREAMED
from server.api.core.reply import answer
from server.api.core.service import Service
from server.api.core.translation import translate_errors
from server.api.openai.chat import begin_chat
from server.api.openai.responses.body import NAMES, ResponsesBody
from server.api.openai.responses.response_encoder import ResponseEncoder
from server.api.openai.responses.stored import earlier_items, keeping
from server.api.openai.responses.tools import IGNORED_TOOLS_HEADER, ignored_types
from server.api.openai.turn_plan import encode

router = APIRouter(prefix="/v1/responses", tags=["responses"], dependencies=[UserDep])


@router.post("", response_model=None, responses=STREAMED)
async def create_response(
    request: Request, body: Annotated[ResponsesBody, JsonBody(ResponsesBody)], service: ServiceDep
) -> Response:
    ignored = note_ignored(body, service)
    with translate_errors(NAMES), service.memory.reserve() as reservation:
        chat = await asyncio.to_thread(body.for_chat, await earlier_items(body, service, reservation))
        turn = await begin_chat(request, service, chat, "resp_")
    response = await answer(request, ResponseEncoder(turn, body, keeping(body, service)), stream=body.stream)
    add_ignored(response, ignored)
    return response


@router.post("/input_tokens")
async def count_input_tokens(
    body: Annotated[ResponsesBody, JsonBody(ResponsesBody)], service: ServiceDep
) -> JSONResponse:
    ignored = note_ignored(body, service)
    with translate_errors(NAMES), service.memory.reserve() as reservation:
        chat = await asyncio.to_thread(body.for_chat, await earlier_items(body, service, reservation))
        prompt = await asyncio.to_thread(encode, chat, (await service.accepting_model(chat.model)).codec)
    response = JSONResponse({"object": "response.input_tokens", "input_tokens": len(prompt.token_ids)})
    add_ignored(response, ignored)
    return response


def note_ignored(body: ResponsesBody, service: Service) -> Sequence[str]:
    """Log what the server ignores, and return the types of tools that it leaves out."""
    service.unknown_fields.note(body.unknown_fields)
    types = ignored_types(body.tools)
    service.ignored_tools.note(types)
    return types


def add_ignored(response: Response, types: Sequence[str]) -> None:
    """Name the types of tools that were left out in a header of the response."""
    if types:
        response.headers[IGNORED_TOOLS_HEADER] = ", ".join(types)
