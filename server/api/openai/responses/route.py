"""``/v1/responses``: the response to a conversation, which may continue a stored one; and counting its tokens."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from server.api.core.bodies.hosted_tools import name_ignored
from server.api.core.bodies.translation import translate_errors
from server.api.core.replies.reply import answer
from server.api.core.service.body import JsonBody
from server.api.core.service.dependencies import ServiceDep
from server.api.core.service.guard import UserDep
from server.api.core.service.openapi import STREAMED
from server.api.openai.chat import begin_chat
from server.api.openai.responses.body import NAMES, ResponsesBody
from server.api.openai.responses.response_encoder import ResponseEncoder
from server.api.openai.responses.stored import earlier_items, keeping
from server.api.openai.responses.tools import ignored_types
from server.api.openai.turn_plan import encode

router = APIRouter(prefix="/v1/responses", tags=["responses"], dependencies=[UserDep])


@router.post("", response_model=None, responses=STREAMED)
async def create_response(
    request: Request, body: Annotated[ResponsesBody, JsonBody(ResponsesBody)], service: ServiceDep
) -> Response:
    service.unknown_fields.note(body.unknown_fields)
    with translate_errors(NAMES), service.memory.reserve() as reservation:
        chat = await asyncio.to_thread(body.for_chat, await earlier_items(body, service, reservation))
        turn = await begin_chat(request, service, chat, "resp_")
    response = await answer(request, ResponseEncoder(turn, body, keeping(body, service)), stream=body.stream)
    return name_ignored(response, ignored_types(body.tools), service.ignored_tools)


@router.post("/input_tokens")
async def count_input_tokens(body: Annotated[ResponsesBody, JsonBody(ResponsesBody)], service: ServiceDep) -> Response:
    service.unknown_fields.note(body.unknown_fields)
    with translate_errors(NAMES), service.memory.reserve() as reservation:
        chat = await asyncio.to_thread(body.for_chat, await earlier_items(body, service, reservation))
        prompt = await asyncio.to_thread(encode, chat, (await service.accepting_model(chat.model)).codec)
    response = JSONResponse({"object": "response.input_tokens", "input_tokens": len(prompt.token_ids)})
    return name_ignored(response, ignored_types(body.tools), service.ignored_tools)
