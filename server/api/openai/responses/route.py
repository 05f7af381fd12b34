"""``/v1/responses``: the response to a conversation; the server stores neither."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.api.core.auth import UserDep
from server.api.core.body import JsonBody
from server.api.core.dependencies import ServiceDep
from server.api.core.openapi import STREAMED
from server.api.core.reply import answer
from server.api.core.translation import translate_errors
from server.api.openai.chat import begin_chat
from server.api.openai.responses.body import NAMES, ResponsesBody
from server.api.openai.responses.response_encoder import ResponseEncoder

router = APIRouter(tags=["responses"], dependencies=[UserDep])


@router.post("/v1/responses", response_model=None, responses=STREAMED)
async def create_response(
    request: Request, body: Annotated[ResponsesBody, JsonBody(ResponsesBody)], service: ServiceDep
) -> Response:
    service.unknown_fields.note(body.unknown_fields)
    with translate_errors(NAMES):
        turn = await begin_chat(service, await asyncio.to_thread(body.for_chat), "resp_")
    return await answer(request, ResponseEncoder(turn, body), stream=body.stream)
