"""``/v1/responses``: a conversation, continued by the assistant; nothing of it is stored."""

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.api.auth import UserDep
from server.api.body import BodyRoute
from server.api.dependencies import ServiceDep
from server.api.openai.chat import begin_chat
from server.api.openai.responses.body import NAMES, ResponsesBody
from server.api.openai.responses.writer import ResponseWriter
from server.api.openapi import STREAMED
from server.api.translation import in_words_of
from server.api.turn_reply import answer_turn

router = APIRouter(tags=["responses"], dependencies=[UserDep], route_class=BodyRoute)


@router.post("/v1/responses", response_model=None, responses=STREAMED)
async def create_response(request: Request, body: ResponsesBody, service: ServiceDep) -> Response:
    service.unknown_fields.note(body.unknown_fields)
    with in_words_of(NAMES):
        turn = await begin_chat(service, await asyncio.to_thread(body.for_chat), "resp_")
    return await answer_turn(request, turn.generation, ResponseWriter(turn, body), streams=body.stream)
